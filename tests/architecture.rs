//! The floors of the house: a module imports only what stands below it, so that one pull can be
//! read from route to body, and one event from log to index, without ever climbing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and says why on standard error")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Small tools at the very bottom; they may use each other.
const TOOLS: &[&str] = &[
    "process",
    "planted",
    "watch",
    "blocking",
    "bounds",
    "random",
    "clock",
    "glob",
    "history",
    "status",
    "shutdown",
    "telemetry",
];

/// Modules by floor. Those of one floor do not know each other.
const FLOORS: &[&[&str]] = &[
    TOOLS,
    &["store", "log", "index"],
    &["auth", "policy", "fetch"],
    &["registry"],
    &["http", "admin", "primary", "secondary"],
    &["config", "app"],
    &["cli"],
    &["main"],
];

/// The composition root reads the configuration beside it.
const APP_READS_CONFIG: (&str, &str) = ("app", "config");

#[test]
fn imports_go_down() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut offences = Vec::new();
    for file in rust_files(&source) {
        let module = module_of(&source, &file);
        if module == "lib" {
            continue;
        }
        let Some(floor) = floor_of(&module) else {
            offences.push(format!("{}: module `{module}` stands on no floor", file.display()));
            continue;
        };
        let text = fs::read_to_string(&file).unwrap();
        for (number, statement) in statements(&text) {
            for target in imported_modules(&statement) {
                let allowed = target == module
                    || floor_of(&target).is_some_and(|below| below < floor)
                    || (floor == 0 && floor_of(&target) == Some(0))
                    || (module.as_str(), target.as_str()) == APP_READS_CONFIG;
                if !allowed {
                    let statement = statement.trim();
                    offences.push(format!(
                        "{}:{number}: `{module}` imports `{target}`: {statement}",
                        file.display()
                    ));
                }
            }
        }
    }
    assert!(offences.is_empty(), "imports that climb:\n{}", offences.join("\n"));
}

#[test]
fn the_protocol_knows_no_runtime() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/src");
    let forbidden =
        ["tokio", "std::net", "std::fs", "SystemTime", "Instant::now", "HashMap", "quinn", "hyper"];
    let offences: Vec<_> = rust_files(&source).iter().flat_map(|file| lines_with(file, &forbidden)).collect();
    assert!(offences.is_empty(), "I/O, clocks or unordered maps in proto:\n{}", offences.join("\n"));
}

#[test]
fn one_file_names_each_exchangeable_library() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (library, home) in [("sled::", "src/index/sled.rs"), ("bincode::", "proto/src/codec.rs")] {
        let home = root.join(home);
        let elsewhere: Vec<_> = ["src", "proto/src", "simulations/src"]
            .iter()
            .flat_map(|folder| rust_files(&root.join(folder)))
            .filter(|file| *file != home)
            .flat_map(|file| lines_with(&file, &[library]))
            // What our own module offers under the same name.
            .filter(|line| !line.contains("sled::SledKv"))
            .collect();
        assert!(elsewhere.is_empty(), "{library} outside {}:\n{}", home.display(), elsewhere.join("\n"));
    }
}

#[test]
fn imports_are_seen_however_they_are_written() {
    let text = "use crate::{\n    store::{Store, get},\n    log::Log,\n};\nlet x = crate::http::body(); // crate::cli\n";
    let seen: Vec<_> = statements(text).iter().flat_map(|(_, line)| imported_modules(line)).collect();
    assert_eq!(seen, ["store", "log", "http"]);
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn module_of(source: &Path, file: &Path) -> String {
    let first = file.strip_prefix(source).unwrap().components().next().unwrap();
    Path::new(first.as_os_str()).file_stem().unwrap().to_str().unwrap().to_owned()
}

/// The lines of a file with their numbers, comments gone, a `use` that spans lines joined to one.
fn statements(text: &str) -> Vec<(usize, String)> {
    let mut statements: Vec<(usize, String)> = Vec::new();
    let mut open_use = false;
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let words = code.trim_start();
        match statements.last_mut() {
            Some((_, statement)) if open_use => statement.push_str(words),
            _ => {
                open_use = words.starts_with("use ") || words.contains(" use ");
                statements.push((number + 1, code.to_owned()));
            }
        }
        open_use = open_use && !code.contains(';');
    }
    statements
}

/// Top modules of this crate that a statement names: `crate::x`, `crate::{x::.., y}` and, in the
/// binary, `outport::x`.
fn imported_modules(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for root in ["crate::", "outport::"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|character| character.is_alphanumeric() || character == '_') {
                continue;
            }
            let rest = &code[at + root.len()..];
            match rest.strip_prefix('{') {
                Some(group) => found.extend(group_items(group).iter().filter_map(|item| first_segment(item))),
                None => found.extend(first_segment(rest)),
            }
        }
    }
    found
}

/// The items of a `{..}` group, without what is nested in them.
fn group_items(group: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut depth = 0_u32;
    for character in group.chars() {
        match (character, depth) {
            ('}', 0) => break,
            ('{', _) => depth += 1,
            ('}', _) => depth -= 1,
            (',', 0) => items.push(String::new()),
            (other, 0) => items.last_mut().unwrap().push(other),
            _ => {}
        }
    }
    items
}

fn first_segment(path: &str) -> Option<String> {
    let name: String = path
        .trim()
        .chars()
        .take_while(|character| character.is_alphanumeric() || *character == '_')
        .collect();
    (!name.is_empty() && !name.chars().any(char::is_uppercase)).then_some(name)
}

/// Lines outside comments and unit tests that hold one of `words`.
fn lines_with(file: &Path, words: &[&str]) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| {
            let code = line.split("//").next().unwrap_or_default();
            words.iter().any(|word| code.contains(word))
        })
        .map(|(number, line)| format!("{}:{}: {}", file.display(), number + 1, line.trim()))
        .collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}
