//! What became here of pushes that are recorded elsewhere: a span a stage, linked to the push.

use std::{collections::VecDeque, time::SystemTime};

use outport_proto::{Offset, SiteName, Traceparent, session::Received};

use crate::{bounds, telemetry::trace::Tracing};

/// Events that wait for a stage at most. More leave no span.
const WAITING_MAX: usize = 1024;

/// Traced events on their way through this site.
pub(super) struct Journeys {
    tracing: Tracing,
    site: SiteName,
    applying: VecDeque<Journey>,
    completing: VecDeque<Journey>,
}

struct Journey {
    offset: Offset,
    push: Traceparent,
    /// When the stage began.
    since: SystemTime,
}

impl Journeys {
    pub(super) fn new(tracing: Tracing, site: SiteName) -> Self {
        Self { tracing, site, applying: VecDeque::new(), completing: VecDeque::new() }
    }

    pub(super) fn received(&mut self, events: &[Received]) {
        for Received { offset, trace, .. } in events {
            let Some(push) = *trace else { continue };
            if self.applying.len() + self.completing.len() < WAITING_MAX {
                self.applying.push_back(Journey { offset: *offset, push, since: SystemTime::now() });
            }
        }
        let waiting = self.applying.len() + self.completing.len();
        bounds::note("traced events under way", waiting, WAITING_MAX);
    }

    pub(super) fn applied(&mut self, to: Offset) {
        while let Some(journey) = self.applying.pop_front_if(|journey| journey.offset <= to) {
            self.ended("apply", &journey);
            self.completing.push_back(Journey { since: SystemTime::now(), ..journey });
        }
    }

    pub(super) fn complete(&mut self, to: Offset) {
        while let Some(journey) = self.completing.pop_front_if(|journey| journey.offset <= to) {
            self.ended("complete", &journey);
        }
    }

    fn ended(&self, stage: &'static str, Journey { offset, push, since }: &Journey) {
        let attributes =
            [("outport.site", self.site.to_string().into()), ("outport.offset", offset.to_string().into())];
        self.tracing.followed_from(stage, *push, *since, attributes);
    }
}
