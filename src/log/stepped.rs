//! A log whose writer runs only when told to, on the caller's thread; for simulations.

use std::{fmt, iter, sync::Arc};

use tokio::sync::mpsc;

use super::{
    Handle, Log, LogError, LogOptions, REQUESTS_MAX, TornTail,
    disk::SharedDisk,
    writer::{Request, Writer},
};
use crate::clock::SharedClock;

/// Runs the writer of one log. Without it nothing that the log is asked ends; once it is dropped
/// the log takes nothing more.
pub struct Stepper {
    writer: Writer,
    requests: mpsc::Receiver<Request>,
    /// Taken out by [`Stepper::asked`].
    first: Option<Request>,
}

impl Stepper {
    /// Resolves once something is asked; false when nobody can ask any more.
    pub async fn asked(&mut self) -> bool {
        if self.first.is_none() {
            self.first = self.requests.recv().await;
        }
        self.first.is_some()
    }

    /// Serves everything asked so far, as one group; returns how much that was.
    pub fn step(&mut self) -> usize {
        let more = iter::from_fn(|| self.requests.try_recv().ok());
        let waiting: Vec<_> = self.first.take().into_iter().chain(more).collect();
        let served = waiting.len();
        self.writer.serve(waiting.into_iter());
        served
    }
}

impl fmt::Debug for Stepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stepper").finish_non_exhaustive()
    }
}

impl Log {
    /// [`Log::open_on`] without a thread: what is asked waits for [`Stepper::step`].
    ///
    /// # Errors
    /// Those of [`Log::open`].
    pub fn open_stepped(
        disk: SharedDisk,
        options: LogOptions,
        clock: SharedClock,
    ) -> Result<(Self, Stepper, Option<TornTail>), LogError> {
        let (writer, torn) = Writer::open(disk, options, clock)?;
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let handle = Handle { shared: writer.shared(), requests: Some(sender), writer: None };
        Ok((Self { handle: Arc::new(handle) }, Stepper { writer, requests, first: None }, torn))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use outport_proto::{Change, Offset, Timestamp};

    use super::*;
    use crate::{clock::ManualClock, log::faulty::FaultyDisk};

    #[test]
    fn nothing_is_durable_before_the_step_and_all_that_waits_shares_one_fsync() {
        let disk = FaultyDisk::new();
        let clock = ManualClock::at(Timestamp::from_secs(1));
        let opened = Log::open_stepped(Arc::new(disk.clone()), LogOptions::default(), clock);
        let (log, mut stepper, _) = opened.unwrap();
        let change = || vec![Change::RepositoryDeleted { repo: "a".parse().unwrap() }];
        let (mut first, mut second) = (pin!(log.append("", change())), pin!(log.append("", change())));
        let mut context = Context::from_waker(Waker::noop());
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert_eq!((log.head(), disk.counts().syncs), (Offset::ZERO, 0));

        assert_eq!(stepper.step(), 2);
        assert!(matches!(first.poll(&mut context), Poll::Ready(Ok(offset)) if offset == Offset::new(1, 1)));
        assert!(matches!(second.poll(&mut context), Poll::Ready(Ok(offset)) if offset == Offset::new(1, 2)));
        assert_eq!(disk.counts().syncs, 2, "the new segment's header, then both records");

        drop(stepper);
        assert!(matches!(pin!(log.append("", change())).poll(&mut context), Poll::Ready(Err(_))));
    }
}
