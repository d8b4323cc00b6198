//! One log in CRI's format: `<time> <stdout|stderr> <P|F>[:tags] <text>`, a line each; `P` is a line not yet full.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use bytes::Bytes;
use jiff::Timestamp;

/// How much a single read gives at the least, if there is as much.
const CHUNK: usize = 64 << 10;
const BLOCK: usize = 64 << 10;

/// What of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Selection {
    pub(crate) tail: Option<u64>,
    pub(crate) limit: Option<u64>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) timestamps: bool,
    pub(crate) stream: Option<&'static str>,
}

pub(crate) struct LogReader {
    path: PathBuf,
    file: BufReader<File>,
    selection: Selection,
    /// A line whose end is not written yet.
    torn: Vec<u8>,
    /// The next text begins a line of output.
    at_line_start: bool,
    ended: bool,
}

impl LogReader {
    pub(crate) fn open(path: PathBuf, selection: Selection) -> io::Result<Self> {
        let mut file = File::open(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("failed to open log file {path:?}: {error}")))?;
        if let Some(lines) = selection.tail {
            let start = tail_start(&mut file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        let file = BufReader::with_capacity(BLOCK, file);
        Ok(Self { path, file, selection, torn: Vec::new(), at_line_start: true, ended: false })
    }

    /// The next piece; empty at the end of what is written so far; none once the limit of bytes is reached.
    pub(crate) fn read(&mut self) -> io::Result<Option<Bytes>> {
        if self.ended {
            return Ok(None);
        }
        let mut output = Vec::new();
        while output.len() < CHUNK && !self.ended {
            if self.file.read_until(b'\n', &mut self.torn)? == 0 && !self.rotate()? {
                break;
            }
            if self.torn.ends_with(b"\n") {
                let line = std::mem::take(&mut self.torn);
                self.print(&line, &mut output);
            }
        }
        Ok(Some(output.into()))
    }

    /// Goes on with the file that has taken this one's place, if one has and nothing is left here.
    fn rotate(&mut self) -> io::Result<bool> {
        let Ok(current) = std::fs::metadata(&self.path) else { return Ok(false) };
        let ours = self.file.get_ref().metadata()?;
        let rotated = (current.dev(), current.ino()) != (ours.dev(), ours.ino());
        // The last line may have come between the end of the file and its successor.
        if !rotated || self.file.read_until(b'\n', &mut self.torn)? > 0 {
            return Ok(rotated);
        }
        self.file = BufReader::with_capacity(BLOCK, File::open(&self.path)?);
        self.torn.clear();
        Ok(true)
    }

    fn print(&mut self, line: &[u8], output: &mut Vec<u8>) {
        // A line that is not of the format (a disk was full) is passed over.
        let Some(entry) = Entry::parse(line) else { return };
        let Selection { since, stream, timestamps, .. } = self.selection;
        if since.is_some_and(|since| entry.time < since) || stream.is_some_and(|stream| stream != entry.stream) {
            return;
        }
        let begin = output.len();
        if timestamps && self.at_line_start {
            output.extend_from_slice(format!("{:.9} ", entry.time).as_bytes());
        }
        output.extend_from_slice(entry.text);
        if entry.full {
            output.push(b'\n');
        }
        self.at_line_start = entry.full;
        if let Some(left) = &mut self.selection.limit {
            let allowed = (output.len() - begin).min(*left as usize);
            output.truncate(begin + allowed);
            *left -= allowed as u64;
            self.ended = *left == 0;
        }
    }
}

struct Entry<'a> {
    time: Timestamp,
    stream: &'a str,
    full: bool,
    text: &'a [u8],
}

impl<'a> Entry<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.strip_suffix(b"\n")?.splitn(4, |byte| *byte == b' ');
        let mut word = || std::str::from_utf8(parts.next()?).ok();
        let (time, stream, tags) = (word()?.parse().ok()?, word()?, word()?);
        let full = tags.split(':').next() != Some("P");
        Some(Self { time, stream, full, text: parts.next().unwrap_or_default() })
    }
}

/// Where the last `lines` lines of the file begin.
fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let (mut position, mut seen) = (end, 0);
    let mut block = vec![0; BLOCK];
    while position > 0 {
        let length = position.min(BLOCK as u64);
        position -= length;
        file.seek(SeekFrom::Start(position))?;
        let block = &mut block[..length as usize];
        file.read_exact(block)?;
        for (at, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = position + at as u64 + 1;
            // The end of the last line begins none.
            seen += u64::from(after != end);
            if seen == lines {
                return Ok(after);
            }
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LOG: &str = "\
2026-01-01T00:00:01.5Z stdout F one
2026-01-01T00:00:02.000000001Z stderr F two
2026-01-01T00:00:03Z stdout P thr
2026-01-01T00:00:03.1Z stdout F ee
not a line of the format
2026-01-01T00:00:04Z stdout F
2026-01-01T00:00:05Z stdout F five  spaced 
";

    fn drain(reader: &mut LogReader) -> String {
        let mut all = Vec::new();
        while let Some(chunk) = reader.read().unwrap().filter(|chunk| !chunk.is_empty()) {
            all.extend_from_slice(&chunk);
        }
        String::from_utf8(all).unwrap()
    }

    fn read(text: &str, selection: Selection) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::fs::write(&path, text).unwrap();
        drain(&mut LogReader::open(path, selection).unwrap())
    }

    #[test]
    fn a_selection_gives_its_lines() {
        let all = "one\ntwo\nthree\n\nfive  spaced \n";
        let since = Some("2026-01-01T00:00:03.1Z".parse().unwrap());
        let rows = [
            (Selection::default(), all),
            (Selection { tail: Some(0), ..Default::default() }, ""),
            (Selection { tail: Some(2), ..Default::default() }, "\nfive  spaced \n"),
            (Selection { tail: Some(1000), ..Default::default() }, all),
            (Selection { limit: Some(6), ..Default::default() }, "one\ntw"),
            (Selection { since, ..Default::default() }, "ee\n\nfive  spaced \n"),
            (Selection { stream: Some("stderr"), ..Default::default() }, "two\n"),
            (
                Selection { timestamps: true, tail: Some(5), ..Default::default() },
                "2026-01-01T00:00:03.000000000Z three\n2026-01-01T00:00:04.000000000Z \n2026-01-01T00:00:05.000000000Z five  spaced \n",
            ),
        ];
        for (selection, expected) in rows {
            assert_eq!(read(LOG, selection.clone()), expected, "{selection:?}");
        }
    }

    #[test]
    fn the_tail_of_a_long_log_is_found_across_blocks() {
        let lines: String = (0..20_000).map(|n| format!("2026-01-01T00:00:01Z stdout F line {n}\n")).collect();
        let expected: String = (5_000..20_000).map(|n| format!("line {n}\n")).collect();
        assert_eq!(read(&lines, Selection { tail: Some(15_000), ..Default::default() }), expected);
    }

    #[test]
    fn what_is_written_later_follows_even_when_torn_or_rotated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = File::create(&path).unwrap();
        let mut reader = LogReader::open(path.clone(), Selection::default()).unwrap();
        assert_eq!(drain(&mut reader), "");
        log.write_all(b"2026-01-01T00:00:01Z stdout F on").unwrap();
        assert_eq!(drain(&mut reader), "");
        log.write_all(b"e\n").unwrap();
        assert_eq!(drain(&mut reader), "one\n");
        std::fs::rename(&path, directory.path().join("0.log.20260101")).unwrap();
        log.write_all(b"2026-01-01T00:00:02Z stdout F two\n").unwrap();
        std::fs::write(&path, "2026-01-01T00:00:03Z stdout F three\n").unwrap();
        assert_eq!(drain(&mut reader), "two\nthree\n");
    }
}
