//! Work that may block its thread. A simulated process ([`crate::process`]) has but one thread and
//! does such work on it, as a task of its own.

use std::{future::Future, io, thread};

use tokio::{
    runtime::Handle,
    sync::mpsc::{self, error::SendError},
    task::{JoinHandle, spawn_blocking},
};

use crate::process::{self, is_simulated, simulated};

/// Does `work` on a thread that may block.
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let Some(process) = simulated() else { return spawn_blocking(work) };
    process::spawn(async move {
        process.dawdle().await;
        work()
    })
}

/// Drives `work`, which blocks between its awaits, on a thread that may block.
pub fn drive<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    if let Some(process) = simulated() {
        return process::spawn(async move {
            process.dawdle().await;
            work.await
        });
    }
    let runtime = Handle::current();
    spawn_blocking(move || runtime.block_on(work))
}

/// Sends from blocking work, waiting for room. A simulated process cannot wait inside of such
/// work: there the channel must have room for all that is sent before it ends.
///
/// # Errors
/// Gives the value back when nobody receives any more.
pub fn send<T>(sender: &mpsc::Sender<T>, value: T) -> Result<(), SendError<T>> {
    if is_simulated() {
        return sender.try_send(value).map_err(|error| SendError(error.into_inner()));
    }
    sender.blocking_send(value)
}

/// Does `work` on a thread of its own that nobody waits for; a simulated process does it at once.
///
/// # Errors
/// When there is no thread.
pub fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    if is_simulated() {
        work();
        return Ok(());
    }
    thread::Builder::new().name(name.to_owned()).spawn(work).map(|_| ())
}
