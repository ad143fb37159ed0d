//! From file and environment to a configuration, or to one line that says where and why not.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::policy::RuleError;

/// Environment variables that begin so override the file.
const ENVIRONMENT_PREFIX: &str = "OUTPORT_";

/// Loads `path` with the process environment on top.
///
/// # Errors
/// One line that names the file, the line and the key, or the environment variable.
pub fn load<C: DeserializeOwned>(path: &Path) -> Result<C, ConfigError> {
    let variables = std::env::vars().filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX));
    load_with_environment(path, variables)
}

/// Loads `path` with `variables` on top.
///
/// # Errors
/// One line that names the file, the line and the key, or the environment variable.
pub fn load_with_environment<C: DeserializeOwned>(
    path: &Path,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<C, ConfigError> {
    let text = fs::read_to_string(path)
        .map_err(|error| ConfigError::new(Place::File(path.to_owned()), error.to_string()))?;
    let overrides: Vec<(String, String)> =
        variables.into_iter().filter(|(name, _)| name.contains("__") || is_top_level(name)).collect();
    if overrides.is_empty() {
        return toml::from_str(&text).map_err(|error| ConfigError::in_file(path, &text, &error));
    }
    let mut table: Table =
        toml::from_str(&text).map_err(|error| ConfigError::in_file(path, &text, &error))?;
    for (name, value) in &overrides {
        let keys: Vec<String> =
            name[ENVIRONMENT_PREFIX.len()..].to_lowercase().split("__").map(str::to_owned).collect();
        insert(&mut table, &keys, parse_value(value))
            .map_err(|reason| ConfigError::new(Place::Variable(name.clone()), reason))?;
    }
    Value::Table(table).try_into().map_err(|error: toml::de::Error| {
        // Spans are gone once tables are merged: if the file alone is fine, it was the environment.
        match toml::from_str::<C>(&text) {
            Err(of_file) => ConfigError::in_file(path, &text, &of_file),
            Ok(_) => {
                let names: Vec<&str> = overrides.iter().map(|(name, _)| name.as_str()).collect();
                ConfigError::new(Place::Variable(names.join(", ")), one_line(error.message()))
            }
        }
    })
}

/// Keys that stand above all tables; other variables with the prefix (`OUTPORT_TEST_..`) are not ours to read.
fn is_top_level(name: &str) -> bool {
    matches!(name, "OUTPORT_DATA_DIR" | "OUTPORT_SITE" | "OUTPORT_POLICY" | "OUTPORT_BANDWIDTH")
}

/// TOML when it parses as such, else a string: `OUTPORT_REGISTRY__LISTEN=0.0.0.0:5000` needs no quotes.
fn parse_value(text: &str) -> Value {
    toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

fn insert(table: &mut Table, keys: &[String], value: Value) -> Result<(), String> {
    match keys {
        [] => Ok(()),
        [key] => {
            table.insert(key.clone(), value);
            Ok(())
        }
        [key, rest @ ..] => match table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => insert(inner, rest, value),
            _ => Err(format!("`{key}` is not a table")),
        },
    }
}

/// Where a configuration is wrong, and why, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    place: Place,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    File(PathBuf),
    Line { file: PathBuf, line: usize, key: Option<String> },
    Variable(String),
}

impl ConfigError {
    /// A value that parses and cannot be used, found by its dotted key.
    pub fn of_key(path: &Path, key: &str, reason: impl fmt::Display) -> Self {
        let line = fs::read_to_string(path).ok().and_then(|text| line_of_key(&text, key));
        let place = match line {
            Some(line) => Place::Line { file: path.to_owned(), line, key: Some(key.to_owned()) },
            None => Place::File(path.to_owned()),
        };
        let reason = if line.is_some() { reason.to_string() } else { format!("{key}: {reason}") };
        Self::new(place, one_line(&reason))
    }

    /// A rule of a list of tables that cannot be used.
    pub fn of_rule(path: &Path, list: &str, error: &RuleError) -> Self {
        let name = format!("{list}[{}]", error.number);
        let key = if error.key.is_empty() { name } else { format!("{name}.{}", error.key) };
        let line = fs::read_to_string(path).ok().and_then(|text| line_of_rule(&text, list, error));
        let reason = one_line(&error.reason);
        match line {
            Some(line) => Self::new(Place::Line { file: path.to_owned(), line, key: Some(key) }, reason),
            None => Self::new(Place::File(path.to_owned()), format!("{key}: {reason}")),
        }
    }

    fn new(place: Place, reason: String) -> Self {
        Self { place, reason }
    }

    fn in_file(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let reason = one_line(error.message());
        let Some(span) = error.span() else {
            return Self::new(Place::File(path.to_owned()), reason);
        };
        let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
        let key = key_of_line(text, line);
        Self::new(Place::Line { file: path.to_owned(), line, key }, reason)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File(file) => write!(f, "{}: ", file.display())?,
            Place::Line { file, line, key: None } => write!(f, "{}:{line}: ", file.display())?,
            Place::Line { file, line, key: Some(key) } => write!(f, "{}:{line}: {key}: ", file.display())?,
            Place::Variable(name) => write!(f, "environment {name}: ")?,
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for ConfigError {}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The dotted key that stands on a line.
fn key_of_line(text: &str, line: usize) -> Option<String> {
    let mut section = String::new();
    for (index, content) in text.lines().enumerate() {
        let header = header_of(content);
        if let Some(name) = header {
            section = name.to_owned();
        }
        if index + 1 == line {
            return match content.split_once('=') {
                _ if header.is_some() => Some(section),
                Some((key, _)) if section.is_empty() => Some(key.trim().to_owned()),
                Some((key, _)) => Some(format!("{section}.{}", key.trim())),
                None => None,
            };
        }
    }
    None
}

fn line_of_key(text: &str, key: &str) -> Option<usize> {
    (1..=text.lines().count()).find(|line| key_of_line(text, *line).as_deref() == Some(key))
}

/// The line of a rule's key, or else where the rule begins.
fn line_of_rule(text: &str, list: &str, error: &RuleError) -> Option<usize> {
    let mut headers = (1..).zip(text.lines()).filter(|(_, line)| header_of(line) == Some(list));
    let (begin, _) = headers.nth(error.number.checked_sub(1)?)?;
    let key = format!("{list}.{}", error.key);
    let rule = (begin + 1..=text.lines().count())
        .take_while(|line| text.lines().nth(line - 1).is_some_and(|line| header_of(line).is_none()));
    rule.into_iter().find(|line| key_of_line(text, *line).as_deref() == Some(&key)).or(Some(begin))
}

fn header_of(line: &str) -> Option<&str> {
    let line = line.trim();
    let name = line.strip_prefix("[[").or_else(|| line.strip_prefix('['))?;
    name.split(']').next().map(str::trim)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        data_dir: String,
        registry: Registry,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Registry {
        listen: std::net::SocketAddr,
        #[serde(default)]
        limit: u32,
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    const GOOD: &str = "data_dir = '/d'\n\n[registry]\nlisten = '127.0.0.1:1'\n";

    #[test]
    fn errors_name_file_line_and_key() {
        for (text, expected) in [
            (
                GOOD.replace("'127.0.0.1:1'", "'nowhere'"),
                ":4: registry.listen: invalid socket address syntax",
            ),
            (format!("{GOOD}limti = 3\n"), ":5: registry.limti: unknown field `limti`"),
            (GOOD.replace("data_dir = '/d'", ""), "missing field `data_dir`"),
            (GOOD.replace("[registry]", "[registry"), ":3:"),
            (format!("{GOOD}limit = 'x'\n"), ":5: registry.limit: invalid type: string"),
        ] {
            let file = file(&text);
            let error = load_with_environment::<Example>(file.path(), []).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.starts_with(&file.path().display().to_string()), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_environment_overrides() {
        let file = file(GOOD);
        let set = |name: &str, value: &str| [(name.to_owned(), value.to_owned())];
        let example: Example =
            load_with_environment(file.path(), set("OUTPORT_REGISTRY__LISTEN", "0.0.0.0:2")).unwrap();
        assert_eq!(example.registry.listen.to_string(), "0.0.0.0:2");
        let example: Example =
            load_with_environment(file.path(), set("OUTPORT_REGISTRY__LIMIT", "7")).unwrap();
        assert_eq!(example.registry.limit, 7);
        let error = load_with_environment::<Example>(file.path(), set("OUTPORT_REGISTRY__LIMIT", "x"));
        assert!(error.unwrap_err().to_string().starts_with("environment OUTPORT_REGISTRY__LIMIT: "));
        let error = load_with_environment::<Example>(file.path(), set("OUTPORT_DATA_DIR__X", "1"));
        assert!(error.unwrap_err().to_string().contains("`data_dir` is not a table"));
    }

    #[test]
    fn a_rule_of_no_use_is_found_by_its_number() {
        let rules = "[[policy]]\nkeep = 'lazy'\n\n[[policy]]\ntag = 'a'\nkeep = 'x'\n[read]\ntag_regex = 1\n";
        let file = file(rules);
        for (number, key, place) in [
            (1, "keep", ":2: policy[1].keep: no"),
            (2, "keep", ":6: policy[2].keep: no"),
            (2, "tag_regex", ":4: policy[2].tag_regex: no"),
            (2, "", ":4: policy[2]: no"),
            (3, "keep", ": policy[3].keep: no"),
        ] {
            let error = RuleError { number, key, reason: "no".to_owned() };
            let error = ConfigError::of_rule(file.path(), "policy", &error).to_string();
            assert!(error.ends_with(place), "{error}");
        }
    }

    #[test]
    fn a_value_of_no_use_is_found_by_its_key() {
        let file = file(GOOD);
        let error = ConfigError::of_key(file.path(), "registry.listen", "address in use");
        assert!(error.to_string().ends_with(":4: registry.listen: address in use"), "{error}");
    }
}
