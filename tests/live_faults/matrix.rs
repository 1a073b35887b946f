//! The table: cells are run several at a time, each to an outcome, and a cell that fails costs no other one.

use std::collections::VecDeque;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What came of a fault at a moment of a job.
pub struct Row {
    pub job: String,
    pub fault: String,
    pub moment: String,
    /// What became of the job, or what was not as it has to be.
    pub outcome: Result<String, String>,
    pub took: Duration,
}

/// So much of what went wrong stands in the table; all of it is in the output.
const WRONG_CHARS_MAX: usize = 160;

impl Row {
    /// Where it stands in the table: moments of one job and fault in the order of their numbers, as far as they have some.
    fn place(&self) -> (&str, &str, u32) {
        let number = self.moment.split([' ', ':']).find_map(|word| word.parse().ok());
        (&self.fault, &self.job, number.unwrap_or(0))
    }

    fn line(&self) -> String {
        let (word, text) = match &self.outcome {
            Ok(text) => ("passed", text.clone()),
            Err(text) => ("FAILED", text.replace('\n', " ").chars().take(WRONG_CHARS_MAX).collect()),
        };
        let Self { job, fault, moment, took, .. } = self;
        let cells = format!("{job:<22} | {fault:<30} | {moment:<52} | {word} | {:6.1} s", took.as_secs_f64());
        format!("{cells} | {text}")
    }
}

/// The rows so far. Each is shown when it is there.
#[derive(Default)]
pub struct Table(Mutex<Vec<Row>>);

impl Table {
    pub fn add(&self, row: Row) {
        let mut rows = self.0.lock().unwrap();
        let line = row.line();
        // Nobody can be told that nobody can be told.
        let _shown = writeln!(std::io::stdout().lock(), "{line}");
        rows.push(row);
    }

    /// Runs a cell and adds its row. None if it failed.
    pub fn run<T>(&self, names: [&str; 3], cell: impl FnOnce() -> (String, T)) -> Option<T> {
        let [job, fault, moment] = names.map(str::to_owned);
        let began = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(cell));
        let (outcome, value) = match ended {
            Ok((text, value)) => (Ok(text), Some(value)),
            Err(payload) => (Err(said(payload.as_ref())), None),
        };
        self.add(Row { job, fault, moment, outcome, took: began.elapsed() });
        value
    }

    /// All of it, in order, and how many cells failed.
    pub fn end(self) -> (String, usize, usize) {
        let mut rows = self.0.into_inner().unwrap();
        rows.sort_by(|one, other| one.place().cmp(&other.place()));
        let failed = rows.iter().filter(|row| row.outcome.is_err()).count();
        let lines: Vec<String> = rows.iter().map(Row::line).collect();
        (lines.join("\n") + "\n", rows.len(), failed)
    }
}

fn said(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}

/// Something that adds rows, and its name, by which it can be chosen.
pub struct Item {
    pub name: String,
    pub run: Box<dyn FnOnce(&Table) + Send>,
}

/// Runs them, so many at a time, in their order.
pub fn run(items: Vec<Item>, at_a_time: usize, table: &Table) {
    let waiting = Mutex::new(VecDeque::from(items));
    std::thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                loop {
                    let Some(item) = waiting.lock().unwrap().pop_front() else { return };
                    let ended = catch_unwind(AssertUnwindSafe(|| (item.run)(table)));
                    if let Err(payload) = ended {
                        let (fault, outcome) = ("what it needs".to_owned(), Err(said(payload.as_ref())));
                        let row = Row { job: item.name, fault, moment: String::new(), outcome, took: Duration::ZERO };
                        table.add(row);
                    }
                }
            });
        }
    });
}
