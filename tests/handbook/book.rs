//! The commands of the handbook, in order.

use std::collections::VecDeque;

const BOOK: &str = include_str!("../../deploy/README.md");
const FENCE: &str = "```";

/// What is still to be run of it, and what was.
pub struct Book {
    lines: VecDeque<&'static str>,
    ran: Vec<String>,
}

impl Book {
    /// All lines of its shell blocks, without what follows a `#`.
    pub fn open() -> Self {
        let mut lines = VecDeque::new();
        let mut is_shell = false;
        for line in BOOK.lines() {
            if let Some(language) = line.strip_prefix(FENCE) {
                is_shell = language == "sh";
            } else if is_shell {
                lines.push_back(line.split(" #").next().unwrap_or_default().trim_end());
            }
        }
        Self { lines, ran: Vec::new() }
    }

    /// The next line, which must begin with `words`.
    pub fn next(&mut self, words: &str) -> String {
        let line = self.lines.pop_front().unwrap_or_else(|| panic!("the handbook ends before: {words}"));
        assert!(line.starts_with(words), "the handbook says `{line}`, and this script `{words}`");
        self.ran(line)
    }

    /// Notes a command that stands in its text, and not in a block.
    pub fn ran(&mut self, line: &str) -> String {
        self.ran.push(line.to_owned());
        line.to_owned()
    }

    /// Nothing may be left: neither a line, nor a command of the program within the text that was run with none
    /// of the options that it stands there with.
    pub fn is_done(&self) {
        assert!(self.lines.is_empty(), "never run: {:?}", self.lines);
        let spans = BOOK.split('`').skip(1).step_by(2).filter(|span| span.starts_with("outport "));
        let mut found = 0;
        for span in spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")) {
            let said: Vec<&str> = span.split(' ').collect();
            let is_name = |word: &&str| word.starts_with(|first: char| first.is_ascii_lowercase());
            let (command, options) = (said.iter().take(3).take_while(|word| is_name(word)), said.iter());
            let command: Vec<&str> = command.copied().collect();
            let options: Vec<&str> = options.copied().filter(|word| word.starts_with("--")).collect();
            let was_run = self.ran.iter().any(|ran| {
                let ran: Vec<&str> = ran.split(' ').collect();
                ran.starts_with(&command) && options.iter().all(|option| ran.contains(option))
            });
            assert!(was_run, "never run: {span}");
            found += 1;
        }
        assert!(found > 10, "{found} commands were found in the text");
    }
}
