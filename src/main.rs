//! The outport program.
fn main() {}
