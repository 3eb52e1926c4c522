//! Ctrl-C and SIGTERM: once, to finish what is under way; twice, to end at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};

/// Set by the first signal. All callers get the same flag: a process has one handler.
pub fn stop_flag() -> Result<Arc<AtomicBool>> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if let Some(flag) = FLAG.get() {
        return Ok(Arc::clone(flag));
    }
    let flag = Arc::clone(FLAG.get_or_init(Default::default));
    let handlers = Arc::clone(&flag);
    ctrlc::set_handler(move || {
        if handlers.swap(true, Ordering::Relaxed) {
            std::process::exit(2);
        }
    })
    .context("listening for Ctrl-C")?;
    Ok(flag)
}
