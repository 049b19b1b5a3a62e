//! `dollop eval --tasks`: how many small tasks a model gets right, at each level of its file.
//!
//! This file opens the model once for each column and asks the questions. `items` has the questions, `score` decides
//! what is right, and `report` prints.

mod facts;
mod items;
mod json;
mod report;
mod schema;
mod score;
mod tools;
mod words;

pub use items::Kind;

use crate::args::EvalArgs;
use crate::streaming::Mark;
use crate::{Failure, eval, locate, note, run, screen};
use dollop::Precision;
use dollop::convert::Purpose;
use dollop::sampler::Sampling;
use dollop::template::DateTime;
use dollop::{Chat, Event, GenerateOptions, Overflow};
use items::{Check, Item};
use report::{Answer, Column};
use serde_json::{Map, Value as Json};
use std::io::Write;
use tools::Shown;

/// Items between two lines of progress.
const PROGRESS: usize = 20;

/// The date that templates get, in seconds since 1970 (1 January 2025): answers must not depend on the date.
const TODAY: u64 = 1_735_689_600;

pub fn tasks(args: &EvalArgs, kinds: &[Kind]) -> Result<(), Failure> {
    let items = items::items(kinds);
    let precisions = precisions(args)?;
    let columns = precisions.into_iter().map(|precision| column(args, precision, kinds, &items));
    let columns = columns.collect::<Result<Vec<Column>, Failure>>()?;
    let mut out = screen::stdout();
    if args.json {
        let json = serde_json::json!({ "tasks_version": items::version(), "columns": columns });
        writeln!(out, "{}", screen::json(&json, false)?)?;
        return Ok(());
    }
    writeln!(out, "{}", report::table(&columns, kinds))?;
    if args.verbose {
        report::failures(&columns).into_iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    Ok(())
}

/// The precisions of `--levels` that the file has; `None` stands for the other flags.
fn precisions(args: &EvalArgs) -> Result<Vec<Option<Precision>>, Failure> {
    if args.levels.is_empty() {
        return Ok(vec![None]);
    }
    let file = locate::dollop_file(args.model.as_deref(), Purpose::Chat)?;
    let stored: Vec<u8> = dollop::inspect::inspect(&file)?.planes.iter().map(|plane| plane.level).collect();
    if stored.is_empty() {
        note!("--levels: a dense model has no experts to read at other levels; one column");
        return Ok(vec![None]);
    }
    let has = |p: &Precision| match p {
        Precision::Exact(level) => stored.contains(&level.bits()),
        Precision::Adaptive { .. } => true,
    };
    let (there, missing): (Vec<Precision>, Vec<Precision>) = args.levels.iter().copied().partition(has);
    if !missing.is_empty() {
        let list = |all: Vec<String>| all.join(", ");
        let stored = list(stored.iter().map(u8::to_string).collect());
        let missing = list(missing.iter().map(Precision::to_string).collect());
        let what = format!("--levels: the file has levels {stored}, and not {missing}");
        if there.is_empty() {
            return Err(what.into());
        }
        note!("{what}, which is left out");
    }
    Ok(there.into_iter().map(Some).collect())
}

/// The label of a column.
fn label(args: &EvalArgs, precision: Option<Precision>) -> String {
    let level = args.engine.level.map(Precision::Exact);
    match precision.or(args.engine.stream.precision).or(level) {
        _ if args.reference => "f32".to_owned(),
        Some(precision) => precision.to_string(),
        None => "as opened".to_owned(),
    }
}

/// Opens the model and asks it all items.
fn column(
    args: &EvalArgs,
    precision: Option<Precision>,
    kinds: &[Kind],
    items: &[Item],
) -> Result<Column, Failure> {
    let mut options = args.engine.options();
    let precision = precision.map(|precision| match (precision, args.engine.stream.floor) {
        (Precision::Adaptive { quality, .. }, Some(floor)) => Precision::Adaptive { quality, floor },
        (other, _) => other,
    });
    options.precision = precision.or(options.precision);
    let (engine, watch) = eval::open(args, options, Purpose::Chat)?;
    let session = engine.session(args.engine.session(args.chunk))?;
    let mut chat = locate::converse(session, None, Overflow::Error, args.model.as_deref())?;
    chat.set_now(DateTime::from_unix(TODAY));
    let mut asker = Asker { chat, target_tps: args.engine.stream.target_tps, shown: None };
    let mark = Mark::now(&engine);
    let label = label(args, precision);
    let mut answers: Vec<Answer> = Vec::new();
    for item in items {
        let failed = |Failure(e)| Failure(format!("{} {}: {e}", item.kind.name(), item.number));
        answers.push(asker.ask(item).map_err(failed)?);
        if answers.len().is_multiple_of(PROGRESS) {
            let right = answers.iter().filter(|answer| answer.right).count();
            note!("{label}: {} of {} tasks, {right} right so far", answers.len(), items.len());
        }
    }
    watch.finish()?;
    let tokens = asker.chat.session().processed_tokens() as usize;
    Ok(Column {
        column: label,
        model: engine.info().name.clone(),
        mode: engine.info().mode.clone(),
        backend: engine.info().backend.clone(),
        gpu_lost: engine.lost().map(str::to_owned),
        tools: asker.shown,
        kinds: kinds.iter().map(|kind| report::count(*kind, &answers)).collect(),
        stream: mark.as_ref().map(|mark| mark.json(&engine, tokens)),
        stream_report: mark.filter(|_| args.engine.stream.stats).map(|mark| mark.report(&engine, tokens)),
        answers,
    })
}

/// A conversation that starts again with every item.
struct Asker {
    chat: Chat,
    target_tps: Option<f64>,
    /// Where the prompt describes tools, once an item needed them.
    shown: Option<Shown>,
}

impl Asker {
    fn ask(&mut self, item: &Item) -> Result<Answer, Failure> {
        let mut variables: Map<String, Json> = Map::new();
        // Reasoning would be longer than the answers.
        variables.insert("enable_thinking".to_owned(), false.into());
        self.chat.set_system(None);
        let mut prompt = item.prompt.clone();
        if let Check::Call { tools, .. } = &item.check {
            let template = self.chat.session().engine().chat_template()?;
            let shown = *self.shown.get_or_insert_with(|| Shown::by(&template, tools));
            prompt = shown.begin(&mut self.chat, &mut variables, tools, &item.prompt);
        }
        self.chat.set_variables(variables);
        let mut options = GenerateOptions::default()
            .with_max_tokens(item.kind.max_tokens())
            .with_sampling(Sampling::greedy());
        options.target_tps = self.target_tps;
        let outcome = self.chat.send(&prompt, &options, &mut |event| {
            if let Event::GpuLost { note } = event {
                run::gpu_lost(&note);
            }
        })?;
        Ok(Answer::new(item, outcome))
    }
}
