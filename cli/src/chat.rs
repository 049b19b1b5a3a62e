//! `dollop chat`.

use crate::args::{ChatArgs, OverflowArg};
use crate::live::Live;
use crate::note;
use crate::output::{bytes, count, peak_memory, read_text, write_file};
use crate::run::{footer, gpu_lost, something_to_say};
use crate::screen;
use crate::streaming::Mark;
use crate::{Failure, interrupt, locate};
use dollop::convert::Purpose;
use dollop::sampler::Sampling;
use dollop::template::Message;
use dollop::{Chat, Constraint, Event, GenerateOptions, Outcome, Overflow};
use rustyline::error::ReadlineError;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

const HELP: &str = "\
/help           this list
/reset          forget the conversation (also /clear)
/system TEXT    set the system prompt and start over; without TEXT: the template's own
/regen          answer the last message again
/read FILE      say what a text file says
/stats          speed, context and memory
/save FILE      write the conversation, for `dollop chat --load FILE`
/exit           leave (also ^D)
A line that is to be said although it looks like a command: a space before it";

/// The commands of [`HELP`].
const COMMANDS: [&str; 9] =
    ["/help", "/reset", "/clear", "/system", "/regen", "/read", "/stats", "/save", "/exit"];

/// The meaning of a typed line.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Nothing,
    Say(&'a str),
    Command(&'a str, &'a str),
    /// Looks like a command but is not one: probably a typo.
    Slip(&'a str),
}

/// Only existing commands are commands: a line may begin with a path or with `//`. A space before a line makes it plain
/// text.
fn read_line(line: &str) -> Line<'_> {
    let text = line.trim();
    if text.is_empty() {
        return Line::Nothing;
    }
    let (name, rest) = text.split_once(char::is_whitespace).map_or((text, ""), |(n, r)| (n, r.trim()));
    if COMMANDS.contains(&name) && !line.starts_with(' ') {
        return Line::Command(name, rest);
    }
    let word = name.strip_prefix('/').filter(|w| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase()));
    match word {
        Some(_) if !line.starts_with(' ') => Line::Slip(name),
        _ => Line::Say(text),
    }
}

/// The file format of `/save`.
#[derive(Serialize, Deserialize)]
struct Saved {
    model: String,
    messages: Vec<Message>,
}

struct Talk<'a> {
    args: &'a ChatArgs,
    chat: Chat,
    /// Taken when the last answer began to stream.
    mark: Option<Mark>,
    last: Option<Outcome>,
    answers: usize,
    /// The same for all answers, except for the seed.
    sampling: Sampling,
    constraint: Option<Constraint>,
    interactive: bool,
}

fn speed(tokens: usize, start: Instant) -> String {
    format!("{:.1} tok/s", tokens as f64 / start.elapsed().as_secs_f64().max(1e-3))
}

pub fn chat(args: &ChatArgs) -> Result<(), Failure> {
    something_to_say(args.max_tokens)?;
    // Report typing errors before converting a model, which can take an hour.
    args.sampling.over(&Sampling::default())?;
    let constraint = args.form.constraint()?;
    let (engine, watch) = locate::open(args.model.as_deref(), &args.engine, Purpose::Chat)?;
    let session = engine.session(args.engine.session(None))?;
    let overflow = match args.overflow {
        OverflowArg::Error => Overflow::Error,
        OverflowArg::Slide => Overflow::Slide,
    };
    let mut chat = locate::converse(session, args.system.clone(), overflow, args.model.as_deref())?;
    if let Some(path) = &args.load {
        let text = read_text(path)?;
        let saved: Saved = serde_json::from_str(&text)
            .map_err(|e| format!("{}: this is no conversation that /save wrote: {e}", path.display()))?;
        if saved.model != engine.info().name {
            note!("note: this conversation was held with {}", saved.model);
        }
        chat.restore(saved.messages);
    }
    let interactive = std::io::stdin().is_terminal();
    let sampling = args.sampling.over(engine.sampling())?;
    let mark = Mark::now(&engine);
    let talk = Talk { args, chat, mark, last: None, answers: 0, sampling, constraint, interactive };
    if interactive { talk.interactive() } else { talk.lines() }?;
    watch.finish()
}

impl Talk<'_> {
    /// Each line of the input is a turn, never a command: the text may come from elsewhere, and commands write and read
    /// files. A turn that fails ends the run, because later ones may build on it.
    fn lines(mut self) -> Result<(), Failure> {
        for (n, line) in std::io::stdin().lock().lines().enumerate() {
            let line = line.map_err(|e| match e.kind() {
                std::io::ErrorKind::InvalidData => {
                    Failure(format!("standard input: line {} is not UTF-8", n + 1))
                }
                _ => Failure(format!("standard input: {e}")),
            })?;
            match if self.args.commands { read_line(&line) } else { Line::Say(&line) } {
                Line::Say(text) if text.trim().is_empty() => {}
                Line::Say(_) => drop(self.say(&line)?),
                Line::Nothing => {}
                Line::Command("/exit", _) => break,
                Line::Command(name, rest) => self.command(name, rest)?,
                Line::Slip(name) => return Err(slip(name)),
            }
        }
        if self.answers > 0 && self.sampling.is_random() && self.args.sampling.is_random() {
            note!("[seed {}]", self.sampling.seed);
        }
        Ok(())
    }

    fn interactive(mut self) -> Result<(), Failure> {
        let info = self.chat.session().engine().info().clone();
        note!(
            "{}: {} weights, {} active; {}; {}",
            info.name,
            count(info.parameters),
            count(info.active_parameters),
            info.mode,
            info.backend
        );
        note!("/help lists the commands, ^C stops an answer, ^D leaves");
        let mut editor = rustyline::DefaultEditor::new().map_err(|e| e.to_string())?;
        let history = history_file();
        if let Some(path) = &history {
            // The first run has no history yet.
            let _ = editor.load_history(path);
        }
        loop {
            match read_turn(&mut editor) {
                Ok(line) => {
                    // A line missing from the history is not a failure.
                    let _ = editor.add_history_entry(&line);
                    let done = match read_line(&line) {
                        Line::Nothing => Ok(()),
                        Line::Command("/exit", _) => break,
                        Line::Command(name, rest) => self.command(name, rest),
                        Line::Slip(name) => Err(slip(name)),
                        Line::Say(text) => self.say(text).map(|outcome| note!("{}", self.footer(&outcome))),
                    };
                    if let Err(Failure(text)) = done {
                        note!("error: {}", screen::one_line(&text));
                    }
                }
                Err(ReadlineError::Interrupted) => note!("(/exit or ^D leaves)"),
                Err(ReadlineError::Eof) => break,
                Err(e) => return Err(e.to_string().into()),
            }
        }
        if let Some(path) = &history {
            let saved = path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(|e| e.to_string());
            if let Err(e) = saved.and_then(|()| editor.save_history(path).map_err(|e| e.to_string())) {
                note!("note: {}: the history was not saved: {e}", path.display());
            }
        }
        Ok(())
    }

    /// Generates an answer to stdout.
    fn say(&mut self, text: &str) -> Result<Outcome, Failure> {
        self.answer(|chat, options, show| chat.send(text, options, show))
    }

    fn answer(
        &mut self,
        ask: impl FnOnce(&mut Chat, &GenerateOptions, &mut dyn FnMut(Event)) -> dollop::Result<Outcome>,
    ) -> Result<Outcome, Failure> {
        let (cancel, _guard) = interrupt::cancellable();
        // A fixed seed must not repeat the same random numbers in every turn.
        let seed = self.sampling.seed.wrapping_add(self.answers as u64);
        let mut options = GenerateOptions::default()
            .with_max_tokens(self.args.max_tokens)
            .with_sampling(self.sampling.clone().with_seed(seed))
            .with_stop(&self.args.sampling.stop)
            .with_cancel(cancel);
        options.target_tps = self.args.engine.stream.target_tps;
        options.constraint.clone_from(&self.constraint);
        self.mark = Mark::now(self.chat.session().engine());
        let mut stdout = screen::answers();
        let (mut broken, mut reasoning) = (None, screen::Reasoning::default());
        let mut live = if self.interactive { Live::new() } else { None };
        let (engine, mark) = (self.chat.session().engine().clone(), &self.mark);
        let (start, mut tokens) = (Instant::now(), 0);
        let outcome = ask(&mut self.chat, &options, &mut |event| {
            if let Event::GpuLost { note } = &event {
                gpu_lost(note);
            }
            if let Some(live) = &mut live {
                tokens += usize::from(matches!(event, Event::Token { .. } | Event::Reasoning { .. }));
                live.update(|| match (&event, mark) {
                    (Event::Prefill { done, total }, _) => format!("reading {done} of {total} tokens"),
                    (_, None) => speed(tokens, start),
                    (_, Some(mark)) => format!("{}, {}", speed(tokens, start), mark.line(&engine, tokens)),
                });
            }
            if let Event::Reasoning { text, .. } = &event {
                reasoning.show(text);
            }
            if let (Event::Token { text, .. } | Event::Rest { text }, None) = (event, &broken) {
                reasoning.end();
                broken = write!(stdout, "{text}").and_then(|()| stdout.flush()).err();
                if broken.is_some() {
                    options.cancel.cancel();
                }
            }
        })?;
        drop(live);
        broken.map_or(Ok(()), Err)?;
        writeln!(stdout)?;
        self.answers += 1;
        self.last = Some(outcome.clone());
        Ok(outcome)
    }

    fn command(&mut self, name: &str, rest: &str) -> Result<(), Failure> {
        match name {
            "/help" => note!("{HELP}"),
            "/reset" | "/clear" => self.chat.reset(),
            "/system" => self.chat.set_system(Some(rest.to_owned()).filter(|t| !t.is_empty())),
            "/regen" => {
                let outcome = self.answer(|chat, options, show| chat.regenerate(options, show))?;
                note!("{}", footer(&outcome, &self.sampling));
            }
            "/read" if rest.is_empty() => return Err("/read needs the name of a text file".into()),
            "/read" => {
                let text = read_text(Path::new(rest))?;
                self.say(&text)?;
            }
            "/stats" => self.stats(),
            "/save" if rest.is_empty() => return Err("/save needs the name of a file to write".into()),
            "/save" => self.save(Path::new(rest))?,
            _ => return Err(slip(name)),
        }
        Ok(())
    }

    /// One line about an answer, with streaming statistics.
    fn footer(&self, outcome: &Outcome) -> String {
        let line = footer(outcome, &self.sampling);
        let tokens = outcome.prompt_tokens - outcome.reused_tokens + outcome.tokens.len();
        match &self.mark {
            Some(mark) => format!("{line} {}", mark.line(self.chat.session().engine(), tokens)),
            None => line,
        }
    }

    fn stats(&self) {
        let session = self.chat.session();
        let info = session.engine().info();
        note!("{}; {}", info.mode, info.backend);
        note!(
            "context: {} of {} tokens; computed since the start: {}",
            session.tokens().len(),
            session.context(),
            session.processed_tokens()
        );
        note!("sampling: {}", self.sampling);
        note!("weights: {}, of which a token reads {}", bytes(info.bytes), bytes(info.active_bytes));
        if let Some(peak) = peak_memory() {
            note!("peak memory with the mapped file: {}", bytes(peak));
        }
        if let Some(last) = &self.last {
            note!("last answer: {}", footer(last, &self.sampling));
            let tokens = last.prompt_tokens - last.reused_tokens + last.tokens.len();
            if let Some(mark) = &self.mark {
                note!("{}", mark.report(session.engine(), tokens));
            }
        }
    }

    fn save(&self, path: &Path) -> Result<(), Failure> {
        let model = self.chat.session().engine().info().name.clone();
        let saved = Saved { model, messages: self.chat.messages().to_vec() };
        let json = serde_json::to_string_pretty(&saved).map_err(|e| e.to_string())?;
        // A mistyped name must not overwrite a file of another kind.
        if path.exists() && !is_conversation(path) {
            return Err(format!("{}: this file is no conversation; name another file", path.display()).into());
        }
        write_file(path, &(json + "\n"), &[])?;
        note!("saved {} messages to {}", self.chat.messages().len(), path.display());
        Ok(())
    }
}

/// Whether `/save` wrote this file. Reads only up to the first byte that is not JSON: the file may be a model.
fn is_conversation(path: &Path) -> bool {
    std::fs::File::open(path)
        .is_ok_and(|file| serde_json::from_reader::<_, Saved>(std::io::BufReader::new(file)).is_ok())
}

fn slip(name: &str) -> Failure {
    format!("there is no command {name}; /help lists them (to say the line as it is, put a space before it)")
        .into()
}

/// Reads a line, or several lines of which each but the last ends with a backslash.
fn read_turn(editor: &mut rustyline::DefaultEditor) -> Result<String, ReadlineError> {
    let mut turn = editor.readline("> ")?;
    while turn.ends_with('\\') {
        turn.pop();
        turn.push('\n');
        turn.push_str(&editor.readline("… ")?);
    }
    Ok(turn)
}

fn history_file() -> Option<PathBuf> {
    locate::home_folder("XDG_STATE_HOME", ".local/state").map(|p| p.join("dollop").join("history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_commands_that_exist_are_commands() {
        for (line, want) in [
            ("", Line::Nothing),
            ("  \t", Line::Nothing),
            ("/help", Line::Command("/help", "")),
            ("/save  a b.json ", Line::Command("/save", "a b.json")),
            (" /save x", Line::Say("/save x")),
            ("/etc/hosts: what is that?", Line::Say("/etc/hosts: what is that?")),
            ("// a comment", Line::Say("// a comment")),
            ("/", Line::Say("/")),
            ("/tmp", Line::Slip("/tmp")),
            ("/sav x", Line::Slip("/sav")),
            ("/Save x", Line::Say("/Save x")),
            ("hello /exit", Line::Say("hello /exit")),
        ] {
            assert_eq!(read_line(line), want, "{line:?}");
        }
        assert!(COMMANDS.iter().all(|c| HELP.contains(c)));
    }
}
