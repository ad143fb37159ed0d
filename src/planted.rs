//! Mistakes to make on purpose, so that a simulation shows that its checks can fail. Each stands
//! where the real mistake would. They exist only with the feature `planted-bugs`, and happen only
//! in a simulated process that was told to make one; without the feature all of this is nothing.

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// A log says that an event is durable that was not synced.
    AcknowledgeBeforeFsync,
    /// Rule 3b is skipped: a token newer than what is applied makes no difference.
    SkipNewerToken,
    /// Rule 3c is skipped: nobody looks at write intents.
    SkipWriteIntent,
    /// Rule 3d is skipped: push sessions are answered like everybody.
    SkipPushSession,
    /// A site says "no" because its own index does not have it.
    TrustLocalNo,
    /// A push that should lose against a tombstone wins.
    LatePushOverTombstone,
    /// A site takes what it heard of for what its index shows.
    AppliedBeforeData,
    /// The held-back end of a fill is given out before its digest matched.
    HeldBackTailEarly,
    /// An event that was missed while a site was away is lost when it is back.
    LoseEventAtReconnect,
    /// A site that hears of a new epoch keeps what it has of the old one.
    ForgetEpochAtReconnect,
    /// Garbage collection takes what somebody counts on.
    CollectWithoutLeases,
    /// A log whose fsync failed tries again and believes the second one.
    BelieveSecondFsync,
    /// A site tells by its wall clock how old its answers are.
    AgeByWallClock,
    /// A site tells by the primary's wall clock how old its answers are, as if heartbeats were never slow.
    AgeByPrimarysClock,
    /// A site remembers every "no".
    RememberWithoutBound,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::AcknowledgeBeforeFsync,
        Self::SkipNewerToken,
        Self::SkipWriteIntent,
        Self::SkipPushSession,
        Self::TrustLocalNo,
        Self::LatePushOverTombstone,
        Self::AppliedBeforeData,
        Self::HeldBackTailEarly,
        Self::LoseEventAtReconnect,
        Self::ForgetEpochAtReconnect,
        Self::CollectWithoutLeases,
        Self::BelieveSecondFsync,
        Self::AgeByWallClock,
        Self::AgeByPrimarysClock,
        Self::RememberWithoutBound,
    ];
}

/// Whether the process that runs is to make this mistake.
#[cfg(feature = "planted-bugs")]
pub(crate) fn is_planted(bug: Bug) -> bool {
    crate::process::simulated().is_some_and(|process| process.bug() == Some(bug))
}

/// Whether the process that runs is to make this mistake: never.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn is_planted(_bug: Bug) -> bool {
    false
}
