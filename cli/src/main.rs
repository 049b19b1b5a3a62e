//! `dollop`: chat with a model, run it, convert it, inspect it, measure it.
//!
//! Only results go to stdout; progress, notes and errors go to stderr. Exit status: 0 for success, 1 for a
//! failure, 2 for a wrong command line. Only this program, not the library, reads the environment and the
//! clock. Only `hub` uses the network, and only if a model's name requires it.

// The doc comments of arguments are help texts, whose brackets and addresses are not links.
#![allow(rustdoc::bare_urls, rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

mod args;
mod bench;
mod chat;
mod clock;
mod convert;
mod devices;
mod doctor;
mod eval;
mod forecast;
mod form;
mod hub;
mod inspect;
mod interrupt;
mod inventory;
mod live;
mod locate;
mod logging;
mod models;
mod output;
mod plan;
mod rates;
mod run;
mod sampling;
mod screen;
#[cfg(feature = "serve")]
mod serve;
mod streaming;
mod tasks;
mod values;

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

/// An error of a command: one line for the user.
#[derive(Debug)]
struct Failure(String);

impl From<dollop::Error> for Failure {
    fn from(e: dollop::Error) -> Self {
        Failure(e.to_string())
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Failure(text)
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        Failure(text.to_owned())
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        // The reader closed the pipe, as in `dollop run … | head`: this is not a failure.
        if e.kind() == std::io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        Failure(e.to_string())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(cli.log);
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(text)) => {
            note!("error: {}", screen::one_line(&text));
            ExitCode::FAILURE
        }
    }
}

fn run(mut command: Command) -> Result<(), Failure> {
    command.fetch_models()?;
    match command {
        Command::Chat(args) => chat::chat(&args),
        Command::Run(args) => run::run(&args),
        Command::Convert(args) => convert::convert(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Plan(args) => plan::plan(&args),
        Command::Eval(args) => eval::eval(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Devices(args) => devices::devices(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Pull(args) => models::pull(&args),
        Command::List(args) => models::list(&args),
        Command::Rm(args) => models::rm(&args),
        Command::Prune(args) => models::prune(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::serve(&args),
    }
}
