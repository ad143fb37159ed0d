//! The read rules: one pure function from facts to what a pull does.
