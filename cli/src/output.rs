//! What people see: tables, colours (only on a terminal), JSON where asked for.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

use anyhow::Result;
use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
}

/// Prints rows as a table, or the values they were made from as JSON.
pub(crate) fn print<T: Serialize>(
    format: Format,
    header: &[&str],
    values: &[T],
    row: impl Fn(&T) -> Vec<String>,
) -> Result<()> {
    if format == Format::Json {
        println!("{}", serde_json::to_string_pretty(values)?);
        return Ok(());
    }
    print!("{}", table(header, values.iter().map(row)));
    Ok(())
}

/// Tells what was done. It is done, whether or not somebody still reads.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Lines of a table, without trailing blanks.
pub(crate) fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// An error and its causes. Many messages tell their cause themselves; each is said once.
pub(crate) fn causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        so_far if so_far.contains(&cause) => told,
        so_far => format!("{so_far}: {cause}"),
    })
}

pub(crate) fn red(text: &str) -> String {
    coloured(text, "31")
}

pub(crate) fn green(text: &str) -> String {
    coloured(text, "32")
}

pub(crate) fn bold(text: &str) -> String {
    coloured(text, "1")
}

fn coloured(text: &str, code: &str) -> String {
    // Either may be where it goes.
    let terminal = std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
    let plain = !terminal || std::env::var_os("NO_COLOR").is_some();
    if plain { text.to_owned() } else { format!("\x1b[{code}m{text}\x1b[0m") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_is_told_already_is_not_told_again() {
        let told = anyhow::anyhow!("no such file").context("open a.conf: no such file").context("reading a.conf");
        assert_eq!(causes(&told), "reading a.conf: open a.conf: no such file");
    }
}
