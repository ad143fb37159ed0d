//! Libraries that stand before the C library of a node and make its machine misbehave.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::path;

/// Builds one in `dir`; it goes into `LD_PRELOAD`.
pub fn built(dir: &Path, source: &str) -> PathBuf {
    let (code, library) = (dir.join("shim.c"), dir.join("shim.so"));
    fs::write(&code, source).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-D_GNU_SOURCE", "-o", path(&library), path(&code)])
        .status()
        .expect("the C compiler that the build needs too");
    assert!(built.success());
    library
}
