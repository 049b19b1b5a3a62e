//! `dollop chat`.

use crate::args::{ChatArgs, OverflowArg};
use crate::live::Live;
use crate::output::{bytes, count, peak_memory, read_text};
use crate::run::{footer, gpu_lost, something_to_say};
use crate::streaming::Mark;
use crate::{Failure, interrupt, locate};
use dollop::template::Message;
use dollop::{Chat, Event, Outcome, Overflow, SessionOptions};
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
/exit           leave (also ^D)";

/// What `/save` writes.
#[derive(Serialize, Deserialize)]
struct Saved {
    model: String,
    messages: Vec<Message>,
}

struct Talk<'a> {
    args: &'a ChatArgs,
    chat: Chat,
    /// Where the last answer began to stream.
    mark: Option<Mark>,
    last: Option<Outcome>,
    answers: usize,
    interactive: bool,
}

fn speed(tokens: usize, start: Instant) -> String {
    format!("{:.1} tok/s", tokens as f64 / start.elapsed().as_secs_f64().max(1e-3))
}

pub fn chat(args: &ChatArgs) -> Result<(), Failure> {
    something_to_say(args.max_tokens)?;
    let (engine, watch) = locate::open(args.model.as_deref(), &args.engine)?;
    let session = engine.session(SessionOptions { context: args.engine.ctx, chunk: None })?;
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
            eprintln!("note: this conversation was held with {}", saved.model);
        }
        chat.restore(saved.messages);
    }
    let interactive = std::io::stdin().is_terminal();
    let talk = Talk { args, chat, mark: Mark::now(&engine), last: None, answers: 0, interactive };
    if interactive { talk.interactive() } else { talk.lines() }?;
    watch.finish()
}

impl Talk<'_> {
    /// Each line of the input is a turn. A turn that fails ends the run: what follows may build on it.
    fn lines(mut self) -> Result<(), Failure> {
        for (n, line) in std::io::stdin().lock().lines().enumerate() {
            let line = line.map_err(|e| match e.kind() {
                std::io::ErrorKind::InvalidData => {
                    Failure(format!("standard input: line {} is not UTF-8", n + 1))
                }
                _ => Failure(format!("standard input: {e}")),
            })?;
            match line.trim() {
                "" => {}
                "/exit" => break,
                command if command.starts_with('/') && self.command(command)? => {}
                _ => {
                    self.say(&line)?;
                }
            }
        }
        Ok(())
    }

    fn interactive(mut self) -> Result<(), Failure> {
        let info = self.chat.session().engine().info().clone();
        eprintln!(
            "{}: {} weights, {} active; {}; {}",
            info.name,
            count(info.parameters),
            count(info.active_parameters),
            info.mode,
            info.backend
        );
        eprintln!("/help lists the commands, ^C stops an answer, ^D leaves");
        let mut editor = rustyline::DefaultEditor::new().map_err(|e| e.to_string())?;
        let history = history_file();
        if let Some(path) = &history {
            // The first run has none.
            let _ = editor.load_history(path);
        }
        loop {
            match read_turn(&mut editor) {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => {
                    let _ = editor.add_history_entry(&line);
                    let line = line.trim();
                    if line == "/exit" {
                        break;
                    }
                    let done = match line.starts_with('/') {
                        true => self.command(line),
                        false => Ok(false),
                    };
                    let done = match done {
                        Ok(false) => self.say(line).map(|outcome| eprintln!("{}", self.footer(&outcome))),
                        Ok(true) => Ok(()),
                        Err(e) => Err(e),
                    };
                    if let Err(Failure(text)) = done {
                        eprintln!("error: {text}");
                    }
                }
                Err(ReadlineError::Interrupted) => eprintln!("(/exit or ^D leaves)"),
                Err(ReadlineError::Eof) => break,
                Err(e) => return Err(e.to_string().into()),
            }
        }
        if let Some(path) = &history {
            let saved = path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(|e| e.to_string());
            if let Err(e) = saved.and_then(|()| editor.save_history(path).map_err(|e| e.to_string())) {
                eprintln!("note: {}: the history was not saved: {e}", path.display());
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
        ask: impl FnOnce(&mut Chat, &dollop::GenerateOptions, &mut dyn FnMut(Event)) -> dollop::Result<Outcome>,
    ) -> Result<Outcome, Failure> {
        let (cancel, _guard) = interrupt::cancellable();
        let mut options = self.args.sampling.options(self.args.max_tokens, cancel);
        // A fixed seed must not give every turn the same dice.
        options.sampling.seed = options.sampling.seed.wrapping_add(self.answers as u64);
        options.target_tps = self.args.engine.stream.target_tps;
        self.mark = Mark::now(self.chat.session().engine());
        let mut stdout = std::io::stdout().lock();
        let mut broken = None;
        let mut live = if self.interactive { Live::new() } else { None };
        let (engine, mark) = (self.chat.session().engine().clone(), &self.mark);
        let (start, mut tokens) = (Instant::now(), 0);
        let outcome = ask(&mut self.chat, &options, &mut |event| {
            if let Event::GpuLost { note } = &event {
                gpu_lost(note);
            }
            if let Some(live) = &mut live {
                tokens += usize::from(matches!(event, Event::Token { .. }));
                live.update(|| match (&event, mark) {
                    (Event::Prefill { done, total }, _) => format!("reading {done} of {total} tokens"),
                    (_, None) => speed(tokens, start),
                    (_, Some(mark)) => format!("{}, {}", speed(tokens, start), mark.line(&engine, tokens)),
                });
            }
            if let (Event::Token { text, .. } | Event::Rest { text }, None) = (event, &broken) {
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

    /// Whether the line was a command.
    fn command(&mut self, line: &str) -> Result<bool, Failure> {
        let (name, rest) = line.split_once(char::is_whitespace).map_or((line, ""), |(n, r)| (n, r.trim()));
        match name {
            "/help" => eprintln!("{HELP}"),
            "/reset" | "/clear" => self.chat.reset(),
            "/system" => self.chat.set_system(Some(rest.to_owned()).filter(|t| !t.is_empty())),
            "/regen" => {
                let outcome = self.answer(|chat, options, show| chat.regenerate(options, show))?;
                eprintln!("{}", footer(&outcome));
            }
            "/read" if rest.is_empty() => return Err("/read needs the name of a text file".into()),
            "/read" => {
                let text = read_text(Path::new(rest))?;
                self.say(&text)?;
            }
            "/stats" => self.stats(),
            "/save" if rest.is_empty() => return Err("/save needs the name of a file to write".into()),
            "/save" => self.save(Path::new(rest))?,
            _ => return Err(format!("there is no command {name}; /help lists them").into()),
        }
        Ok(true)
    }

    /// One line about an answer, with what streaming did.
    fn footer(&self, outcome: &Outcome) -> String {
        let line = footer(outcome);
        let tokens = outcome.prompt_tokens - outcome.reused_tokens + outcome.tokens.len();
        match &self.mark {
            Some(mark) => format!("{line} {}", mark.line(self.chat.session().engine(), tokens)),
            None => line,
        }
    }

    fn stats(&self) {
        let session = self.chat.session();
        let info = session.engine().info();
        eprintln!("{}; {}", info.mode, info.backend);
        eprintln!(
            "context: {} of {} tokens; computed since the start: {}",
            session.tokens().len(),
            session.context(),
            session.processed_tokens()
        );
        eprintln!("weights: {}, of which a token reads {}", bytes(info.bytes), bytes(info.active_bytes));
        if let Some(peak) = peak_memory() {
            eprintln!("peak memory with the mapped file: {}", bytes(peak));
        }
        if let Some(last) = &self.last {
            eprintln!("last answer: {}", footer(last));
            let tokens = last.prompt_tokens - last.reused_tokens + last.tokens.len();
            if let Some(mark) = &self.mark {
                eprintln!("{}", mark.report(session.engine(), tokens));
            }
        }
    }

    fn save(&self, path: &Path) -> Result<(), Failure> {
        let model = self.chat.session().engine().info().name.clone();
        let saved = Saved { model, messages: self.chat.messages().to_vec() };
        let json = serde_json::to_string_pretty(&saved).map_err(|e| e.to_string())?;
        // Written beside and renamed: an older conversation of this name is lost only to a whole new one.
        let mut name = path.as_os_str().to_os_string();
        name.push(".partial");
        let partial = PathBuf::from(name);
        let failed = |e: std::io::Error| format!("{}: {e}", path.display());
        std::fs::write(&partial, json + "\n").map_err(failed)?;
        std::fs::rename(&partial, path).map_err(failed)?;
        eprintln!("saved {} messages to {}", self.chat.messages().len(), path.display());
        Ok(())
    }
}

/// A line, or several where each but the last ends with a backslash.
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
