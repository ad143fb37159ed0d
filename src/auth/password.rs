//! The password file: one `user:hash` a line, as htpasswd writes it.
//!
//! Outport writes argon2id in PHC form; bcrypt hashes (`$2y$`, `$2a$`, `$2b$`) that other tools
//! wrote are read as well. Empty lines and lines that start with `#` are kept as they are.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
};

use argon2::{
    Argon2,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash},
};

use super::{FileError, files, random};

/// Names that mean groups in access rules and therefore cannot be users.
const RESERVED: [&str; 2] = [super::rules::ANONYMOUS, super::rules::AUTHENTICATED];
/// Longest user name in bytes.
pub(super) const USER_BYTES_MAX: usize = 128;
/// Longest password in bytes: hashing time must not grow with what a stranger sends.
pub(super) const PASSWORD_BYTES_MAX: usize = 1024;
/// Highest bcrypt cost taken: this one needs seconds for a single check already.
const BCRYPT_COST_MAX: u32 = 16;

/// A password's hash.
#[derive(Clone)]
pub(super) enum Hash {
    Argon2(Box<PasswordHash>),
    Bcrypt(String),
}

impl Hash {
    /// Hashes a new password with argon2id and its recommended cost.
    pub(super) fn of(password: &str) -> Result<Self, PasswordError> {
        let salt = random::bytes::<16>().map_err(|_| PasswordError::Hash)?;
        Argon2::default()
            .hash_password_with_salt(password.as_bytes(), &salt)
            .map(|hash| Self::Argon2(Box::new(hash)))
            .map_err(|_| PasswordError::Hash)
    }

    /// Whether this is the hash of `password`. Takes tens of milliseconds of a core.
    pub(super) fn matches(&self, password: &str) -> bool {
        match self {
            Self::Argon2(hash) => Argon2::default().verify_password(password.as_bytes(), &**hash).is_ok(),
            Self::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
        }
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        if text.starts_with("$argon2id$") {
            let hash = PasswordHash::new(text).map_err(|_| "the argon2id hash is malformed")?;
            let complete = hash.salt.is_some() && hash.hash.is_some();
            if !complete || argon2::Params::try_from(&hash).is_err() {
                return Err("the argon2id hash is malformed");
            }
            Ok(Self::Argon2(Box::new(hash)))
        } else if ["$2y$", "$2a$", "$2b$"].iter().any(|prefix| text.starts_with(prefix)) {
            let parts = bcrypt::HashParts::from_str(text).map_err(|_| "the bcrypt hash is malformed")?;
            if parts.get_cost() > BCRYPT_COST_MAX {
                return Err("the bcrypt cost is over 16");
            }
            Ok(Self::Bcrypt(text.to_owned()))
        } else {
            Err("the hash is neither argon2id nor bcrypt")
        }
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Argon2(hash) => hash.fmt(f),
            Self::Bcrypt(hash) => f.write_str(hash),
        }
    }
}

/// Reads a password file's users.
pub(super) fn parse(path: &Path, text: &str) -> Result<BTreeMap<String, Hash>, PasswordError> {
    let mut users = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let fault = |reason| PasswordError::Line { path: path.to_owned(), line: index + 1, reason };
        if is_filler(line) {
            continue;
        }
        let (user, hash) = line.split_once(':').ok_or_else(|| fault("expected user:hash"))?;
        check_user(user).map_err(fault)?;
        let hash = Hash::parse(hash.trim_end()).map_err(fault)?;
        if users.insert(user.to_owned(), hash).is_some() {
            return Err(fault("the user occurs twice"));
        }
    }
    Ok(users)
}

fn is_filler(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with('#')
}

fn check_user(user: &str) -> Result<(), &'static str> {
    if user.is_empty() || user.len() > USER_BYTES_MAX {
        return Err("a user name has 1 to 128 bytes");
    }
    if user.starts_with('#') || user.contains(|c: char| c.is_control() || c.is_whitespace() || c == ':') {
        return Err("a user name has no colon, space or control character and does not start with #");
    }
    if RESERVED.contains(&user) {
        return Err("the user name means a group in access rules");
    }
    Ok(())
}

/// Adds a user or changes their password; makes the file if there is none. Returns whether the
/// user is new. The file is replaced atomically and has mode 0600 afterwards.
pub fn add(path: &Path, user: &str, password: &str) -> Result<bool, PasswordError> {
    check_user(user).map_err(PasswordError::User)?;
    if password.is_empty() || password.len() > PASSWORD_BYTES_MAX || password.contains(char::is_control) {
        return Err(PasswordError::Password);
    }
    let _alone = files::lock_beside(path)?;
    let text = files::read_text(path)?.unwrap_or_default();
    let is_new = !parse(path, &text)?.contains_key(user);
    let line = format!("{user}:{}", Hash::of(password)?);
    let kept = text.lines().map(|old| if is_line_of(old, user) { line.as_str() } else { old });
    let lines: Vec<&str> = kept.chain(is_new.then_some(line.as_str())).collect();
    files::write_private(path, &(lines.join("\n") + "\n"))?;
    Ok(is_new)
}

/// Removes a user. Returns whether there was one.
pub fn remove(path: &Path, user: &str) -> Result<bool, PasswordError> {
    let _alone = files::lock_beside(path)?;
    let Some(text) = files::read_text(path)? else { return Ok(false) };
    if !parse(path, &text)?.contains_key(user) {
        return Ok(false);
    }
    let kept: String =
        text.lines().filter(|line| !is_line_of(line, user)).flat_map(|line| [line, "\n"]).collect();
    files::write_private(path, &kept)?;
    Ok(true)
}

/// The users, sorted. A file that is not there has none.
pub fn list(path: &Path) -> Result<Vec<String>, PasswordError> {
    let text = files::read_text(path)?.unwrap_or_default();
    Ok(parse(path, &text)?.into_keys().collect())
}

fn is_line_of(line: &str, user: &str) -> bool {
    !is_filler(line) && line.split_once(':').is_some_and(|(name, _)| name == user)
}

/// What is wrong with a password file or a request to change it.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not there.
    #[error("{}: no such password file", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// A line says nothing sensible.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        reason: &'static str,
    },
    /// Not a user name.
    #[error("{0}")]
    User(&'static str),
    /// Not a password.
    #[error("a password has 1 to 1024 bytes and no control characters")]
    Password,
    /// Hashing failed.
    #[error("the password cannot be hashed")]
    Hash,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const BCRYPT: &str = "$2y$04$9lwIq.hdbQAJ6Y4k2EqQAOYHbHbxUpmCGrOyvoB3tLuxiTsHTB5kW";

    fn parse_text(text: &str) -> Result<Vec<String>, String> {
        parse(Path::new("/etc/outport/users"), text)
            .map(|users| users.into_keys().collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn files_are_read_as_htpasswd_writes_them() {
        let argon = Hash::of("x").unwrap().to_string();
        let text = format!("# people\n\nana:{argon}\nbob:{BCRYPT}\r\n");
        assert_eq!(parse_text(&text), Ok(vec!["ana".to_owned(), "bob".to_owned()]));
        for (bad, reason) in [
            ("nonsense".to_owned(), "expected user:hash"),
            (":x".to_owned(), "a user name has 1 to 128 bytes"),
            ("a b:x".to_owned(), "a user name has no colon, space"),
            ("anonymous:x".to_owned(), "means a group"),
            ("ana:secret".to_owned(), "neither argon2id nor bcrypt"),
            ("ana:".to_owned(), "neither argon2id nor bcrypt"),
            ("ana:$apr1$x$y".to_owned(), "neither argon2id nor bcrypt"),
            ("ana:$argon2id$v=19$m=19456,t=2,p=1".to_owned(), "the argon2id hash is malformed"),
            ("ana:$argon2id$v=19$m=1,t=0,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo".to_owned(), "malformed"),
            (format!("ana:{}", &BCRYPT[..50]), "the bcrypt hash is malformed"),
            (format!("ana:{}", BCRYPT.replace("$04$", "$31$")), "cost is over 16"),
            (format!("ana:{argon}\nana:{argon}"), "the user occurs twice"),
        ] {
            let line = bad.lines().count() + 1;
            let error = parse_text(&format!("# first\n{bad}")).unwrap_err();
            assert!(error.starts_with(&format!("/etc/outport/users:{line}: ")), "{error}");
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn hashes_match_their_password_alone() {
        let bcrypt = Hash::parse(&bcrypt::hash("pä ss", 4).unwrap()).unwrap();
        let argon = Hash::parse(&Hash::of("pä ss").unwrap().to_string()).unwrap();
        for hash in [bcrypt, argon] {
            assert!(hash.matches("pä ss"));
            assert!(!hash.matches("pä s") && !hash.matches(""));
        }
    }

    #[test]
    fn two_at_once_lose_no_user() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        std::thread::scope(|scope| {
            for user in ["ana", "bob", "cid", "dan"] {
                let path = &path;
                scope.spawn(move || add(path, user, "x").unwrap());
            }
        });
        assert_eq!(list(&path).unwrap(), ["ana", "bob", "cid", "dan"]);
    }

    #[test]
    fn users_are_added_changed_and_removed_without_touching_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        assert_eq!(list(&path).unwrap(), Vec::<String>::new());
        assert!(add(&path, "ana", "one").unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let first = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("# people\n{first}bob:{BCRYPT}")).unwrap();
        assert!(!add(&path, "ana", "two").unwrap());
        assert_eq!(list(&path).unwrap(), ["ana", "bob"]);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# people\nana:$argon2id$") && text.ends_with(&format!("bob:{BCRYPT}\n")));
        assert!(parse(&path, &text).unwrap()["ana"].matches("two"));
        assert!(remove(&path, "ana").unwrap() && !remove(&path, "ana").unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("# people\nbob:{BCRYPT}\n"));
        for user in ["", "a:b", "#a", "authenticated", "a\nb"] {
            assert!(matches!(add(&path, user, "x"), Err(PasswordError::User(_))), "{user:?}");
        }
        for password in ["", "a\nb", &"x".repeat(PASSWORD_BYTES_MAX + 1)] {
            assert!(matches!(add(&path, "cid", password), Err(PasswordError::Password)));
        }
    }
}
