//! The line of a test that cannot run here.

use std::fmt::Display;
use std::io::Write;

/// Says on a line of its own that the test at hand is skipped, wholly or in part, and why. It goes past `println!` and
/// `eprintln!`: what they print of a test that passes is never shown.
pub fn skipped(why: impl Display) {
    let thread = std::thread::current();
    let line = format!("skipped: {}: {why}\n", thread.name().unwrap_or("a test"));
    // Whoever closed the stream did not want to know.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
