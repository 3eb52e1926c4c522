//! Training: what a run is and how it is repeated, resumed and measured.
//!
//! In reading order: [`plan`] is a validated plan and [`settings`] its flat form; [`start`] is what a
//! run starts from; [`run`](mod@run) puts everything together and [`session`] is the loop, which
//! performs what [`policy`] asks for; [`loader`] packs and masks ahead; [`step`] is one optimizer step
//! with [`optimizer`], [`outliers`] and [`schedule`]; [`task`] is what masked-language modelling and classification
//! do differently; [`evaluate`] measures with [`metrics`] and [`unigram`]; [`checkpoint`] and
//! [`run_dir`] are what lies on the disk, [`records`] what is read there, by TensorBoard too ([`tensorboard`]);
//! [`observer`] watches and [`report`] shows.

pub mod checkpoint;
mod error;
pub mod evaluate;
mod exact;
pub mod loader;
pub mod metrics;
pub mod observer;
pub mod optimizer;
pub mod outliers;
pub mod plan;
pub mod policy;
pub mod records;
pub mod report;
pub mod run;
pub mod run_dir;
pub mod schedule;
pub mod session;
pub mod settings;
pub mod start;
pub mod step;
pub mod task;
pub mod tensorboard;
pub mod unigram;

pub use error::{Error, Result};
pub use evaluate::{EvalPlan, evaluate};
pub use observer::{Event, Observer, Silent};
pub use outliers::Outliers;
pub use plan::{Batching, Feed, Length, Occupied, ReportTo, TrainPlan};
pub use policy::{Every, Metric, Policy};
pub use records::{ClassifierEval, Curves, EvalRecord, EvalResult, MlmEval, Record, StepRecord};
pub use run::{Ended, Summary, run};
pub use start::Start;
pub use step::Replay;
pub use task::{ClassWeights, Task};
pub use unigram::Unigram;
