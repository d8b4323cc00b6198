//! Man pages from the same description of the commands that parses them and prints their help: one page per command.
//! `cargo xtask dist` asks for them; people read them with `man leme-up`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff};

#[derive(Args)]
pub(crate) struct Options {
    /// The folder to write them to
    folder: PathBuf,
}

pub(crate) fn run(options: &Options, leme: Command) -> Result<()> {
    fs::create_dir_all(&options.folder).with_context(|| format!("cannot make {}", options.folder.display()))?;
    pages(leme).into_iter().try_for_each(|(name, page)| write(&options.folder.join(format!("{name}.1")), &page))
}

fn write(path: &Path, page: &[u8]) -> Result<()> {
    fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
}

/// Every page under its name: `leme`, `leme-up`, `leme-node-exec`, …
pub(crate) fn pages(leme: Command) -> Vec<(String, Vec<u8>)> {
    let mut leme = leme.disable_help_subcommand(true);
    leme.build();
    let mut pages = Vec::new();
    collect(&leme, None, "leme", &mut pages);
    pages
}

fn collect(command: &Command, above: Option<&str>, name: &str, pages: &mut Vec<(String, Vec<u8>)>) {
    pages.push((name.to_owned(), page(command, above, name).expect("a vector takes every byte")));
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        collect(below, Some(name), &format!("{name}-{}", below.get_name()), pages);
    }
}

/// The order of man-pages(7). Examples are set as they are written: their columns mean something.
fn page(command: &Command, above: Option<&str>, name: &str) -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let man = Man::new(command.clone());
    title(name).to_writer(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.get_subcommands().any(|below| !below.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    examples(command).to_writer(&mut page)?;
    see_also(command, above, name).to_writer(&mut page)?;
    Ok(page)
}

/// Without a date: the version says which leme it is about.
fn title(name: &str) -> Roff {
    let mut title = Roff::new();
    title.control("TH", [name, "1", r#""""#, concat!("leme ", env!("CARGO_PKG_VERSION")), "Leme"]);
    title
}

fn examples(command: &Command) -> Roff {
    let mut section = Roff::new();
    let Some(help) = command.get_after_help().map(ToString::to_string) else {
        return section;
    };
    section.control("SH", ["EXAMPLES"]).control("nf", []);
    let lines = help.lines().skip_while(|line| line.starts_with("Example"));
    for line in lines {
        section.text([Inline::Roman(line.trim_end().to_owned())]);
    }
    section.control("fi", []);
    section
}

/// The page above, and those below.
fn see_also(command: &Command, above: Option<&str>, name: &str) -> Roff {
    let above = above.map(str::to_owned);
    let below = command.get_subcommands().filter(|below| !below.is_hide_set());
    let names = above.into_iter().chain(below.map(|below| format!("{name}-{}", below.get_name())));
    let names = names.map(|name| name.replace('-', r"\-")).collect::<Vec<_>>();
    let mut section = Roff::new();
    if let Some((last, others)) = names.split_last() {
        section.control("SH", ["SEE ALSO"]);
        for name in others {
            section.control("BR", [name.as_str(), "(1),"]);
        }
        section.control("BR", [last.as_str(), "(1)"]);
    }
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        Command::new("leme")
            .about("A helm")
            .after_help("Examples:\n  leme turn left     to port\n.dots at the start stay")
            .subcommand(Command::new("turn").about("Turn it").subcommand(Command::new("left").about("To port")))
            .subcommand(Command::new("secret").hide(true))
    }

    fn text(name: &str) -> String {
        let page = pages(command()).into_iter().find(|(page, _)| page == name).unwrap().1;
        String::from_utf8(page).unwrap()
    }

    #[test]
    fn every_command_that_shows_has_a_page() {
        let names: Vec<_> = pages(command()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["leme", "leme-turn", "leme-turn-left"]);
    }

    #[test]
    fn examples_keep_their_lines_and_are_no_requests() {
        let page = text("leme");
        let examples = page.split(".SH EXAMPLES").nth(1).unwrap();
        assert!(examples.contains(".nf\n  leme turn left     to port\n\\&.dots at the start stay\n.fi\n"), "{page}");
    }

    #[test]
    fn pages_name_those_above_and_below() {
        assert!(text("leme-turn").contains(".BR leme (1),\n.BR leme\\-turn\\-left (1)"), "{}", text("leme-turn"));
        assert!(!text("leme").contains("secret"));
    }
}
