//! Programs that not every machine has. A test says so and passes where one is missing, and fails there when they are
//! required: in CI.

const VARIABLE: &str = "OUTPORT_TEST_CLIENTS";

/// Whether every one of `programs` is installed; says which is not. Where they are required, that is a failure.
pub fn installed(programs: &[&str]) -> bool {
    let search = std::env::var("PATH").unwrap_or_default();
    let found = |program: &str| std::env::split_paths(&search).any(|dir| dir.join(program).is_file());
    match programs.iter().find(|program| !found(program)) {
        Some(missing) => skip(&format!("{missing} is not installed")),
        None => true,
    }
}

/// Says why a test is skipped; a failure where nothing may be.
pub fn skip(reason: &str) -> bool {
    let required = std::env::var(VARIABLE).is_ok_and(|value| value == "required");
    assert!(!required, "{reason}, and {VARIABLE} is `required`");
    eprintln!("skipped: {reason}");
    false
}
