//! What a run shows: a bar on a terminal, lines of log elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use indicatif::ProgressBar;

use crate::cli::figures::{grouped, one_line};
use crate::cli::{Common, interrupt};
use crate::train::step::Why;
use crate::train::{Event, Observer};

const BAR: &str = "{msg}  {bar:30} {pos}/{len}  {elapsed} gone, {eta} left";

/// Shows a run and passes Ctrl-C on to it.
pub struct Progress {
    bar: ProgressBar,
    evaluation: ProgressBar,
    stop: Arc<AtomicBool>,
    /// Whether logged steps go to the log: where no bar shows them.
    logs_steps: bool,
    common: Common,
}

impl Progress {
    /// Nothing is shown before the run starts.
    pub fn new(common: &Common) -> Result<Self> {
        Ok(Progress {
            bar: ProgressBar::hidden(),
            evaluation: ProgressBar::hidden(),
            stop: interrupt::stop_flag()?,
            logs_steps: !std::io::stderr().is_terminal(),
            common: common.clone(),
        })
    }

    /// Writes to the log without tearing the bar.
    fn log(&self, text: &str) {
        self.bar.suspend(|| tracing::info!("{text}"));
    }

    fn bar(&self, total: u64) -> ProgressBar {
        // The template is a constant that indicatif accepts; without it there is no bar, which is no reason to stop.
        self.common.progress(total, BAR).unwrap_or_else(|_| ProgressBar::hidden())
    }
}

impl Observer for Progress {
    fn on(&mut self, event: Event<'_>) {
        match event {
            Event::Started(s) => {
                self.bar = self.bar(s.total_steps);
                self.bar.set_position(s.step);
                self.bar.reset_eta();
                let from = if s.step > 0 { format!(", going on after step {}", s.step) } else { String::new() };
                let warmup =
                    if s.warmup_steps > 0 { format!(", {} of warm-up", s.warmup_steps) } else { String::new() };
                self.log(&format!(
                    "{}: {} parameters, {} steps{warmup}{from}",
                    s.device,
                    grouped(s.parameters as u64),
                    s.total_steps
                ));
            }
            Event::Step(s) => {
                self.bar.set_message(format!("loss {:.3}  {:.0} tokens/s", s.loss, s.tokens_per_second));
                self.bar.set_position(s.step);
            }
            Event::Logged(r) if self.logs_steps => self.log(&format!(
                "step {}: epoch {:.2}, loss {:.4}, gradient norm {:.2}, learning rate {:.2e}, {:.0} tokens/s",
                r.step, r.epoch, r.loss, r.grad_norm, r.learning_rate, r.tokens_per_second
            )),
            Event::Logged(_) => {}
            Event::Skipped { step, loss, grad_norm, why } => self.bar.suspend(|| {
                let what = match why {
                    Why::NotFinite => "is not finite",
                    Why::Outlier => "is an outlier",
                };
                tracing::warn!("step {step} {what} and was skipped: loss {loss}, gradient norm {grad_norm}");
            }),
            Event::Evaluating { done, total } => {
                if done == 1 {
                    self.evaluation = self.bar(total);
                    self.evaluation.set_message("evaluating");
                }
                self.evaluation.set_position(done);
                if done == total {
                    self.evaluation.finish_and_clear();
                }
            }
            Event::Evaluated(r) => {
                self.log(&format!("step {}: held out: {}", r.step, one_line(&r.eval)));
            }
            Event::Promoted(path) => self.log(&format!("model -> {}", path.display())),
            Event::Saved(path) => self.log(&format!("saved {}", path.display())),
            Event::Deleted(path) => tracing::debug!("deleted {}", path.display()),
        }
    }

    fn wants_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.evaluation.finish_and_clear();
        self.bar.finish_and_clear();
    }
}
