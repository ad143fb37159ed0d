//! Mistakes that a world makes on purpose, so that it shows whether its checks can fail.

use clap::ValueEnum;

/// A planted bug. None of them is in Outport: the world's drivers make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Bug {
    /// Rule 3a is skipped: every session counts as live and every answer as young.
    SkipStaleSession,
    /// Rule 3b is skipped: a token newer than what is applied makes no difference.
    SkipNewerToken,
    /// Rule 3c is skipped: nobody looks at write intents.
    SkipWriteIntent,
    /// Rule 3d is skipped: push sessions are answered like everybody.
    SkipPushSession,
    /// Rule 3e is skipped: `Outport-Min-Offset` makes no difference.
    SkipMinOffset,
    /// A site says "no" because its own index does not have it.
    TrustLocalNo,
    /// A site takes what it received for what its index shows.
    AppliedBeforeData,
    /// A site lets an event fall between log and index after it connected again.
    LoseEventAtReconnect,
    /// A site lets an old push win over the tombstone that came after it.
    LatePushOverTombstone,
    /// The primary acknowledges a write that is not on its disk yet.
    AcknowledgeBeforeFsync,
    /// A site takes the closed time of a heartbeat whose head it has not applied.
    ClosedTimeTooEarly,
}

impl Bug {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}
