//! Options that constrain the form of an answer.

use crate::Failure;
use crate::output::read_text;
use clap::Args;
use dollop::Constraint;
use std::path::PathBuf;

#[derive(Args, Clone)]
#[command(next_help_heading = "Form of the answer")]
#[group(multiple = false)]
pub struct FormArgs {
    /// The answer must be JSON that obeys the JSON Schema in this file (- for standard input). Unsupported
    /// keywords are an error. Raise -n if the JSON is cut off
    #[arg(long, value_name = "FILE")]
    pub json_schema: Option<PathBuf>,
    /// The answer must match this regular expression, such as '(yes|no)'
    #[arg(long, value_name = "RE", allow_hyphen_values = true)]
    pub regex: Option<String>,
    /// The answer must follow the grammar in this file (- for standard input): llguidance's form of Lark,
    /// starting at `start`
    #[arg(long, value_name = "FILE")]
    pub grammar: Option<PathBuf>,
}

impl FormArgs {
    /// The constraint, if one was given. It is compiled later, when the vocabulary is known.
    pub fn constraint(&self) -> Result<Option<Constraint>, Failure> {
        Ok(match (&self.json_schema, &self.regex, &self.grammar) {
            (Some(file), ..) => Some(Constraint::json_schema(read_text(file)?)),
            (_, Some(text), _) => Some(Constraint::regex(text)),
            (.., Some(file)) => Some(Constraint::lark(read_text(file)?)),
            _ => None,
        })
    }
}
