//! Parses, runs, prints the error chain.

use std::process::ExitCode;

fn main() -> ExitCode {
    handbert::cli::main()
}
