//! Several addresses of one peer, of which not all may lead anywhere: the first that works is taken.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

/// How long an address is tried alone before the next one is as well (RFC 8305, section 5).
const DELAY: Duration = Duration::from_millis(250);

/// The addresses of all these `host:port`, in their order.
///
/// # Errors
/// The last of the resolver's, when no name has an address.
pub async fn addresses(names: &[String]) -> io::Result<Vec<SocketAddr>> {
    let (mut found, mut last) = (Vec::new(), io::ErrorKind::NotFound.into());
    for name in names {
        match tokio::net::lookup_host(name).await {
            Ok(addresses) => found.extend(addresses),
            Err(error) => last = error,
        }
    }
    if found.is_empty() { Err(last) } else { Ok(found) }
}

/// Connects to the first of `addresses` that lets itself be connected to. They are begun in this order, each when
/// the one before failed, or has not worked for a moment; those that come too late are dropped.
///
/// # Errors
/// The last error, or `None` when there is no address.
pub async fn first<T, E, F: Future<Output = Result<T, E>>>(
    addresses: impl IntoIterator<Item = SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<T, Option<E>> {
    let mut waiting = addresses.into_iter().peekable();
    let mut racing: Vec<Pin<Box<F>>> = Vec::new();
    let mut last = None;
    loop {
        match waiting.next() {
            Some(address) => racing.push(Box::pin(connect(address))),
            None if racing.is_empty() => return Err(last),
            None => {}
        }
        let is_last = waiting.peek().is_none();
        let pause =
            async { if is_last { std::future::pending().await } else { tokio::time::sleep(DELAY).await } };
        let ended = poll_fn(|context| {
            let mut racing = racing.iter_mut().enumerate();
            racing
                .find_map(|(number, future)| match future.as_mut().poll(context) {
                    Poll::Ready(result) => Some(Poll::Ready((number, result))),
                    Poll::Pending => None,
                })
                .unwrap_or(Poll::Pending)
        });
        tokio::select! {
            biased;
            (number, result) = ended => {
                drop(racing.swap_remove(number));
                match result {
                    Ok(connected) => return Ok(connected),
                    Err(error) => last = Some(error),
                }
            }
            () = pause => {}
        }
    }
}

/// What `first` leads to, or if it failed, or is not there after `ahead`, whichever of it and `spare` leads to
/// something sooner.
///
/// # Errors
/// That of `first` when neither does; that of `spare` is for logs.
pub async fn with_spare<T, E: std::fmt::Display>(
    first: impl Future<Output = Result<T, E>>,
    ahead: Duration,
    spare: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let (mut first, mut spare) = (pin!(first), pin!(spare));
    let failed = tokio::select! {
        biased;
        result = first.as_mut() => match result {
            Ok(value) => return Ok(value),
            Err(error) => Some(error),
        },
        () = tokio::time::sleep(ahead) => None,
    };
    let failed = match failed {
        Some(failed) => failed,
        None => tokio::select! {
            biased;
            result = first.as_mut() => match result {
                Ok(value) => return Ok(value),
                Err(error) => error,
            },
            result = spare.as_mut() => match result {
                Ok(value) => return Ok(value),
                Err(error) => {
                    tracing::debug!(%error, "the other way leads nowhere");
                    return first.await;
                }
            },
        },
    };
    match spare.await {
        Ok(value) => Ok(value),
        Err(error) => {
            tracing::debug!(%error, "the other way leads nowhere either");
            Err(failed)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::Instant;

    use super::*;

    /// An address is a port: this many milliseconds until it ends, and odd ones fail.
    async fn run(ports: &[u16]) -> (Result<u16, Option<u16>>, Duration, Vec<u16>) {
        let begun = Mutex::new(Vec::new());
        let start = Instant::now();
        let addresses = ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port)));
        let result = first(addresses, |address| {
            let port = address.port();
            begun.lock().unwrap().push(port);
            async move {
                tokio::time::sleep(Duration::from_millis(port.into())).await;
                if port.is_multiple_of(2) { Ok(port) } else { Err(port) }
            }
        });
        (result.await, start.elapsed(), begun.into_inner().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_address_that_works_is_taken() {
        let ms = Duration::from_millis;
        assert_eq!(run(&[100, 10]).await, (Ok(100), ms(100), vec![100]));
        assert_eq!(run(&[60_000, 100]).await, (Ok(100), ms(350), vec![60_000, 100]), "one that says nothing");
        assert_eq!(run(&[11, 100]).await, (Ok(100), ms(111), vec![11, 100]), "one that says no");
        assert_eq!(run(&[600, 100]).await, (Ok(100), ms(350), vec![600, 100]));
        assert_eq!(run(&[300, 100]).await.0, Ok(300), "what was begun goes on");
        assert_eq!(run(&[11, 301]).await.0, Err(Some(301)));
        assert_eq!(run(&[]).await.0, Err(None));
    }

    /// Each leads to something after so many milliseconds; odd ones fail.
    async fn spared(first: u64, spare: u64) -> (Result<u64, u64>, u64) {
        let start = Instant::now();
        let way = async |ms: u64| {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            if ms.is_multiple_of(2) { Ok(ms) } else { Err(ms) }
        };
        let result = with_spare(way(first), Duration::from_millis(600), way(spare)).await;
        (result, start.elapsed().as_millis() as u64)
    }

    #[tokio::test(start_paused = true)]
    async fn a_spare_way_is_taken_when_the_first_leads_nowhere() {
        assert_eq!(spared(500, 2).await, (Ok(500), 500));
        assert_eq!(spared(60_000, 100).await, (Ok(100), 700), "the first says nothing");
        assert_eq!(spared(11, 100).await, (Ok(100), 111), "the first says no");
        assert_eq!(spared(800, 400).await, (Ok(800), 800), "the first comes after all");
        assert_eq!(spared(701, 400).await, (Ok(400), 1000));
        assert_eq!(spared(900, 101).await, (Ok(900), 900), "the spare one says no");
        assert_eq!(spared(901, 101).await, (Err(901), 901));
        assert_eq!(spared(11, 101).await, (Err(11), 112));
    }
}
