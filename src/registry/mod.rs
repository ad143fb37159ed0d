//! The registry itself: read decisions, pushes, and the journal that both stand on. No HTTP types.
