//! The program's commands, apart from running nodes: what they accept, what they refuse and how
//! they say so.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use outport::{
    auth::Authority,
    clock::{Clock as _, SystemClock},
};
const BINARY: &str = env!("CARGO_BIN_EXE_outport");

#[test]
fn the_examples_are_valid() {
    let home = Home::new();
    for (directory, file, role) in [
        ("deploy/examples", "primary.toml", "primary"),
        ("deploy/examples", "secondary.toml", "secondary"),
        ("deploy/compose", "primary.toml", "primary"),
        ("deploy/compose", "secondary.toml", "secondary"),
        ("deploy/gitlab", "primary.toml", "primary"),
        ("deploy/gitlab", "secondary.toml", "secondary"),
    ] {
        let config = home.config(&format!("{directory}/{file}"), |text| text);
        let output = run(&["config", "check", &config]);
        assert!(output.status.success(), "{directory}/{file}: {}", stderr(&output));
        assert!(stdout(&output).contains(role), "{}", stdout(&output));
    }
}

#[test]
fn the_rules_of_the_example_are_valid_and_one_that_never_decides_is_pointed_out() {
    let home = Home::new();
    let uncommented = |text: String| {
        let keys =
            ["[[", "repository", "platforms =", "semver =", "keep = \"", "priority =", "hours", "utc_offset"];
        let is_rule = |line: &str| {
            keys.iter().any(|key| line.starts_with(key))
                || line == "staleness_bound_ms = 500"
                || line.ends_with("MiB/s\"")
        };
        let line = |line: &str| match line.strip_prefix("# ") {
            Some(rule) if is_rule(rule) => format!("{rule}\n"),
            _ => format!("{line}\n"),
        };
        text.lines().map(line).collect::<String>()
    };
    let config = home.config("deploy/examples/secondary.toml", uncommented);
    assert_eq!(fs::read_to_string(&config).unwrap().matches("\n[[").count(), 7);
    let output = run(&["config", "check", &config]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 1, "{}", stdout(&output));
    let config = home.config("deploy/examples/secondary.toml", |text| {
        format!("{}[[policy]]\nrepository = 'late'\nkeep = 'lazy'\n", uncommented(text))
    });
    let output = run(&["config", "check", &config]);
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stdout(&output);
    let warning = said.lines().next().unwrap();
    assert!(warning.starts_with("warning: ") && warning.contains(": policy[6]: "), "{said}");
    assert!(warning.contains("rule 5"), "{said}");
}

/// With the keys and tables that stand in comments.
fn uncommented(text: &str) -> String {
    let is_written = |line: &&str| line.starts_with('[') || line.split(' ').nth(1) == Some("=");
    let line = |line: &str| match line.strip_prefix("# ").filter(is_written) {
        Some(written) => format!("{written}\n"),
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[test]
fn the_ways_in_of_the_example_are_valid() {
    let home = Home::new();
    for (mode, from, to) in [
        ("token", "# [auth.token]", "# With mode = \"delegated\""),
        ("delegated", "# [auth.delegated]", "# With mode = \"anonymous\""),
        ("anonymous", "# With mode = \"anonymous\"", "[replication]\n"),
    ] {
        let config = home.config("deploy/examples/primary.toml", |text| {
            let text = text.replace("# upstream = ", "upstream = ");
            let (before, rest) = text.split_once("[auth]").unwrap();
            let keys = uncommented(&rest[rest.find(from).unwrap()..rest.find(to).unwrap()]);
            let keys = keys.lines().filter(|line| !line.contains(".crt\"")).map(|line| format!("{line}\n"));
            let rest = &rest[rest.find("[replication]\n").unwrap()..];
            format!("{before}[auth]\nmode = \"{mode}\"\n{}{rest}", keys.collect::<String>())
        });
        let output = run(&["config", "check", &config]);
        assert!(output.status.success(), "{mode}: {}", stderr(&output));
    }
}

#[test]
fn a_broken_configuration_is_one_line_that_says_where() {
    let home = Home::new();
    let primary = "deploy/examples/primary.toml";
    let secondary = "deploy/examples/secondary.toml";
    type Break = fn(String) -> String;
    let broken: [(&str, &str, &str, Break); 31] = [
        (primary, "data_dri", "unknown field", |text| text.replace("data_dir =", "data_dri =")),
        (primary, "registry.listen", "socket address", |text| text.replace("0.0.0.0:443", "nowhere")),
        (primary, "registry.listen", "registry.tls", |text| {
            let (before, rest) = text.split_once("[registry.tls]").unwrap();
            format!("{before}{}", &rest[rest.find("[auth]").unwrap()..])
        }),
        (primary, "registry.public_url", "URL", |text| {
            text.replace("https://registry-primary.example.com", "registry-primary.example.com")
        }),
        (primary, "registry.public_url", "URL", |text| {
            text.replace("https://registry-primary.example.com", "https://registry-primary.example.com/path")
        }),
        (primary, "registry.tls", "No such file", |text| text.replace("/https.key", "/missing.key")),
        (primary, "auth.users_file", "No such file", |text| text.replace("/users\"", "/nobody\"")),
        (primary, "auth.access", "", |text| {
            text.replace("repository = \"public/**\"", "repository = \"public/[\"")
        }),
        (primary, "auth.access.pul", "unknown field", |text| {
            text.replace("pull = [\"anonymous\"]", "pul = [\"anonymous\"]")
        }),
        (primary, "auth", "only with mode = \"outport\"", |text| {
            text.replace("# mode = \"outport\"", "mode = \"anonymous\"")
        }),
        (primary, "auth.mode", "registry.upstream", |text| {
            let (before, rest) = text.split_once("[auth]").unwrap();
            format!(
                "{before}[auth]\nmode = \"anonymous\"\n{}",
                &rest[rest.find("[replication]\n").unwrap()..]
            )
        }),
        (primary, "auth", "users_file is needed", |text| text.replace("users_file =", "# users_file =")),
        (primary, "auth.token.certificates", "No such file", |text| {
            let text = text.replace("# upstream = ", "upstream = ");
            let (before, rest) = text.split_once("[auth]").unwrap();
            let token = &rest[rest.find("# [auth.token]").unwrap()..rest.find("# jwks =").unwrap()];
            let rest = &rest[rest.find("[replication]\n").unwrap()..];
            format!("{before}[auth]\nmode = \"token\"\n{}{rest}", uncommented(token))
        }),
        (primary, "auth.token.certificates", "holds no certificate", |text| {
            let text = text.replace("# upstream = ", "upstream = ");
            let (before, rest) = text.split_once("[auth]").unwrap();
            let token = &rest[rest.find("# [auth.token]").unwrap()..rest.find("# jwks =").unwrap()];
            let token = uncommented(token).replace("registry-auth.crt", "users");
            let rest = &rest[rest.find("[replication]\n").unwrap()..];
            format!("{before}[auth]\nmode = \"token\"\n{token}{rest}")
        }),
        (primary, "auth.token.jwks", "jwks_insecure", |text| {
            let text = text.replace("# upstream = ", "upstream = ");
            let (before, rest) = text.split_once("[auth]").unwrap();
            let token = &rest[rest.find("# [auth.token]").unwrap()..rest.find("# certificates =").unwrap()];
            let token = format!("{}jwks = \"http://gitlab.example.com/keys\"\n", uncommented(token));
            let rest = &rest[rest.find("[replication]\n").unwrap()..];
            format!("{before}[auth]\nmode = \"token\"\n{token}{rest}")
        }),
        (primary, "replication.sites", "", |text| {
            text.replace("# sites = [\"frankfurt\", \"mumbai\"]", "sites = [\"Not A Name\"]")
        }),
        (primary, "replication.authority_key", "a private key", |text| {
            text.replace("authority.key", "primary.key")
        }),
        (primary, "replication.tls.renew", "replication.authority_key", |text| {
            text.replace("authority_key =", "# authority_key =")
        }),
        (primary, "replication.listen", "", |text| text.replace("0.0.0.0:5443", "0.0.0.0:99999")),
        (primary, "replication.congestion", "unknown variant", |text| {
            text.replace("# congestion = \"cubic\"", "congestion = \"vegas\"")
        }),
        (primary, "telemetry.log_format", "unknown variant", |text| {
            text.replace("log_format = \"json\"", "log_format = \"xml\"")
        }),
        (primary, "", "", |text| text.replace("[auth]", "[auth")),
        (secondary, "site", "", |text| text.replace("site = \"mumbai\"", "site = \"../mumbai\"")),
        (secondary, "primary.address", "host and a port", |text| {
            text.replace("example.com:5443", "example.com")
        }),
        (secondary, "read.staleness_bound_ms", "at least", |text| {
            text.replace("staleness_bound_ms = 1000", "staleness_bound_ms = 1")
        }),
        (secondary, "read.staleness_bound_ms", "invalid", |text| {
            text.replace("staleness_bound_ms = 1000", "staleness_bound_ms = \"soon\"")
        }),
        (secondary, "registry.public_url", "push.mode", |text| {
            text.replace("# public_url = ", "public_url = ")
        }),
        (secondary, "admin.listen", "admin.token_file", |text| {
            text.replace("127.0.0.1:9000", "0.0.0.0:9000")
        }),
        (secondary, "policy[2].semver", "unexpected", |text| {
            format!("{text}[[policy]]\nkeep = 'lazy'\n[[policy]]\nkeep = 'lazy'\nsemver = 'newest'\n")
        }),
        (secondary, "policy.keep", "unknown variant", |text| format!("{text}[[policy]]\nkeep = 'all'\n")),
        (secondary, "bandwidth[1].hours", "utc_offset", |text| {
            format!("{text}[[bandwidth]]\nlimit = '1MiB/s'\nhours = '08:00-18:00'\n")
        }),
    ];
    for (file, key, reason, damage) in broken {
        let original = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        assert_ne!(damage(original.clone()), original, "{key}: the damage changes nothing");
        let config = home.config(file, damage);
        let output = run(&["config", "check", &config]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{key}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let place =
            said.split_once(&format!("{config}:")).map(|(_, rest)| rest).unwrap_or_else(|| panic!("{said}"));
        let line: String = place.chars().take_while(char::is_ascii_digit).collect();
        let line: usize = line.parse().unwrap_or_else(|_| panic!("{key}: no line in {said}"));
        assert!(line > 0 && line <= fs::read_to_string(&config).unwrap().lines().count() + 1, "{said}");
        assert!(said.contains(key) && said.contains(reason), "{key}, {reason}: {said}");
        assert_eq!(stdout(&output), "");
        // The node itself refuses it in the same words.
        let role = if file == primary { "primary" } else { "secondary" };
        let node = run(&[role, "--config", &config]);
        assert_eq!((node.status.code(), stderr(&node)), (Some(1), said));
    }
    for (file, key) in [(primary, "data_dir"), (secondary, "site"), (secondary, "[registry]")] {
        let config = home.config(file, |text| {
            text.lines().filter(|line| !line.starts_with(key)).map(|line| format!("{line}\n")).collect()
        });
        let output = run(&["config", "check", &config]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(key.trim_matches(['[', ']'])), "{key}: {}", stderr(&output));
    }
    let output = run(&["config", "check", "/no/such/file.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/no/such/file.toml"), "{}", stderr(&output));
}

#[test]
fn plain_http_is_for_loopback_or_on_purpose() {
    let home = Home::new();
    let bare = |listen: &str, more: &str| {
        let text =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/compose/primary.toml"));
        text.unwrap().replace("0.0.0.0:5000", listen).replace("insecure = true", more)
    };
    for (listen, more, accepted) in [
        ("127.0.0.1:5000", "", true),
        ("[::1]:5000", "", true),
        ("127.3.2.1:5000", "insecure = false", true),
        ("0.0.0.0:5000", "", false),
        ("0.0.0.0:5000", "insecure = false", false),
        ("[::]:5000", "", false),
        ("192.0.2.1:5000", "", false),
        ("0.0.0.0:5000", "insecure = true", true),
    ] {
        let config = home.write("plain.toml", &home.adapt(bare(listen, more)));
        let output = run(&["config", "check", &config]);
        assert_eq!(output.status.success(), accepted, "{listen} {more}: {}", stderr(&output));
        if !accepted {
            let said = stderr(&output);
            assert!(said.contains("registry.listen") && said.contains("insecure"), "{said}");
        }
    }
}

#[test]
fn the_environment_overrides_the_file() {
    let home = Home::new();
    let config = home.config("deploy/examples/primary.toml", |text| text);
    let check = |variables: &[(&str, &str)]| {
        Command::new(BINARY)
            .args(["config", "check", &config])
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    };
    for (name, value, accepted) in [
        ("OUTPORT_REGISTRY__LISTEN", "127.0.0.1:5000", true),
        ("OUTPORT_REGISTRY__LISTEN", "nowhere", false),
        ("OUTPORT_REGISTRY__CONNECTIONS_MAX", "77", true),
        ("OUTPORT_REGISTRY__CONNECTIONS_MAX", "many", false),
        ("OUTPORT_REGISTRY__INSECURE", "true", true),
        ("OUTPORT_REPLICATION__SITES", "['a', 'b']", true),
        ("OUTPORT_REPLICATION__SITES", "['A B']", false),
        ("OUTPORT_DATA_DIR", "/elsewhere", true),
        ("OUTPORT_NO__SUCH_KEY", "1", false),
        ("OUTPORT_AUTH__USERS_FILE", "/no/such/file", false),
        ("OUTPORT_TEST_REQUIRE_CLIENTS", "1", true),
    ] {
        let output = check(&[(name, value)]);
        assert_eq!(output.status.success(), accepted, "{name}={value}: {}", stderr(&output));
        if !accepted {
            let said = stderr(&output);
            assert_eq!(said.lines().count(), 1, "{said}");
            let key = name["OUTPORT_".len()..].to_lowercase().replace("__", ".");
            assert!(said.contains(name) || said.contains(&key), "{said}");
        }
    }
    // A file that is broken can be mended from outside.
    let broken = home.config("deploy/examples/primary.toml", |text| text.replace("0.0.0.0:443", "nowhere"));
    let mended = Command::new(BINARY)
        .args(["config", "check", &broken])
        .env("OUTPORT_REGISTRY__LISTEN", "127.0.0.1:1")
        .output()
        .unwrap();
    assert!(mended.status.success(), "{}", stderr(&mended));
}

#[test]
fn certificates_are_made_once_and_kept_private() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("pki");
    let dir = dir.to_str().unwrap();
    let cert = |arguments: &[&str]| run(&[&["cert"], arguments, &["--dir", dir]].concat());
    let early = cert(&["issue", "primary"]);
    assert_eq!(early.status.code(), Some(1));
    assert!(stderr(&early).contains("cert init"), "{}", stderr(&early));

    assert!(cert(&["init", "--cluster", "test"]).status.success());
    for (arguments, name) in [
        (vec!["issue", "primary"], "primary"),
        (vec!["issue", "mumbai"], "mumbai"),
        (vec!["issue", "web", "--https", "registry.example.com,127.0.0.1"], "web"),
    ] {
        let made = cert(&arguments);
        assert!(made.status.success(), "{}", stderr(&made));
        assert!(
            stdout(&made).contains(&format!("{name}.crt")) && stdout(&made).contains(&format!("{name}.key"))
        );
        let read = || ["crt", "key"].map(|suffix| fs::read(format!("{dir}/{name}.{suffix}")).unwrap());
        let first = read();
        let mode = fs::metadata(format!("{dir}/{name}.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}.key");
        // Not overwritten, unless asked to.
        let again = cert(&arguments);
        assert_eq!(again.status.code(), Some(1));
        assert!(stderr(&again).contains("exists already"), "{}", stderr(&again));
        assert_eq!(read(), first);
        assert!(cert(&[arguments.as_slice(), &["--force"]].concat()).status.success());
        assert_ne!(read(), first);
    }
    let authority = fs::read(format!("{dir}/authority.key")).unwrap();
    assert_eq!(fs::metadata(format!("{dir}/authority.key")).unwrap().permissions().mode() & 0o777, 0o600);
    let again = cert(&["init"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("exists already"), "{}", stderr(&again));
    assert_eq!(fs::read(format!("{dir}/authority.key")).unwrap(), authority);
    for name in ["authority", "../escape", "Not A Name", ""] {
        let output = cert(&["issue", name]);
        assert!(!output.status.success(), "{name}");
    }
    assert!(!home.path().join("escape.key").exists());
}

#[test]
fn users_are_added_listed_and_removed() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("users");
    let path = file.to_str().unwrap();
    let user = |arguments: &[&str], input: &str| {
        let mut child = Command::new(BINARY)
            .arg("user")
            .args(arguments)
            .args(["--file", path])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that reads nothing may be gone already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    };
    let added = user(&["add", "alice", "--password-stdin"], "correct horse\n");
    assert!(added.status.success(), "{}", stderr(&added));
    assert!(!stdout(&added).contains("correct horse"));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o077, 0, "others may not read hashes");
    let made = user(&["add", "bob"], "");
    let password =
        stdout(&made).lines().find_map(|line| line.strip_prefix("password: ").map(str::to_owned)).unwrap();
    assert!(password.len() >= 16, "{password}");
    assert_eq!(stdout(&user(&["list"], "")), "alice\nbob\n");
    let text = fs::read_to_string(&file).unwrap();
    assert!(
        text.contains("$argon2id$") && !text.contains("correct horse") && !text.contains(&password),
        "{text}"
    );

    let changed = user(&["add", "alice", "--password-stdin"], "another one\n");
    assert!(stdout(&changed).contains("changed"), "{}", stdout(&changed));
    assert_ne!(fs::read_to_string(&file).unwrap(), text);
    assert!(user(&["remove", "alice"], "").status.success());
    assert_eq!(stdout(&user(&["list"], "")), "bob\n");
    let gone = user(&["remove", "alice"], "");
    assert_eq!(gone.status.code(), Some(1));
    assert!(stderr(&gone).contains("alice"), "{}", stderr(&gone));
    for (name, password) in [("a:b", "x\n"), ("", "x\n"), ("a\nb", "x\n"), ("carol", "\n"), ("carol", "")] {
        let refused = user(&["add", name, "--password-stdin"], password);
        assert!(!refused.status.success(), "{name:?} {password:?}");
    }
    assert_eq!(stdout(&user(&["list"], "")), "bob\n");
}

#[test]
fn completions_and_manual_pages_are_of_this_program() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(
            output.status.success() && stdout(&output).contains("prefetch"),
            "{shell}: {}",
            stderr(&output)
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man");
    let output = run(&["man", pages.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    for page in ["outport.1", "outport-primary.1", "outport-log-show.1", "outport-cert-issue.1"] {
        let text = fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".SH NAME") && text.contains(".TH"), "{page}: {text}");
    }
}

#[test]
fn unknown_commands_and_options_exit_with_2() {
    for arguments in [
        &["frobnicate"][..],
        &[],
        &["primary"],
        &["secondary", "--no-such-option"],
        &["cert"],
        &["cert", "frobnicate"],
        &["user", "add"],
        &["config"],
        &["status", "--no-such-option"],
        &["demo", "--port", "x"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
        assert!(
            stderr(&output).contains("--help") || stderr(&output).contains("Usage"),
            "{}",
            stderr(&output)
        );
    }
    for arguments in [&["--help"][..], &["--version"], &["demo", "--help"], &["cert", "issue", "--help"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(stdout(&output).contains("outport"));
    }
}

/// A directory that holds what the examples name.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        for file in [
            "https.crt",
            "https.key",
            "users",
            "mumbai.crt",
            "mumbai.key",
            "primary.crt",
            "primary.key",
            "site.crt",
            "site.key",
            "registry-password",
            "notification-secret",
            "gitlab-token",
            "gitlab-registry.crt",
            "admin-token",
        ] {
            home.write(file, "");
        }
        // It is read when a configuration is checked.
        let issuer = rcgen::generate_simple_self_signed(["gitlab.example.com".to_owned()]).unwrap();
        home.write("gitlab-registry.crt", &issuer.cert.pem());
        // So is this.
        let authority = Authority::create("test", SystemClock.now()).unwrap();
        authority.save(&home.0.path().join("authority.crt"), &home.0.path().join("authority.key")).unwrap();
        home
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// An example with the paths of this directory.
    fn adapt(&self, text: String) -> String {
        let home = self.0.path().to_str().unwrap();
        text.replace("/etc/outport", home).replace("/var/lib/outport", &format!("{home}/data"))
    }

    /// A file of the repository, damaged or not.
    fn config(&self, file: &str, damage: impl Fn(String) -> String) -> String {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        self.write("config.toml", &self.adapt(damage(text)))
    }
}

fn run(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).env_remove("OUTPORT_CONFIG").output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
