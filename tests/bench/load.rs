//! The load generator: one thread on a core of its own, many keep-alive connections, requests
//! that are the same bytes again and again.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The core of servers under measurement.
pub const SERVER_CORE: usize = 0;
/// The core of the load generator.
pub const LOAD_CORE: usize = 1;

/// Moves the calling thread to the load generator's core.
pub fn pin() {
    let mut cores = CpuSet::new();
    cores.set(LOAD_CORE);
    sched_setaffinity(None, &cores).expect("pin the load generator");
}

/// A GET request as bytes, as a client sends it that knows OCI manifests.
pub fn get(address: &str, target: &str, token: Option<&str>) -> Vec<u8> {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let accept = "Accept: application/vnd.oci.image.manifest.v1+json\r\n";
    format!("GET {target} HTTP/1.1\r\nHost: {address}\r\n{accept}{authorization}\r\n").into_bytes()
}

/// Sends `request` over `connections` for `duration`; returns requests a second. Every answer
/// must be a 200 as long as the first.
pub fn requests_per_second(address: &str, request: &[u8], connections: usize, duration: Duration) -> f64 {
    let length = answer_length(address, request);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let until = Instant::now() + duration;
        let began = Instant::now();
        let clients: Vec<_> = (0..connections)
            .map(|_| {
                let (address, request) = (address.to_owned(), request.to_vec());
                tokio::spawn(async move { one_client(&address, &request, length, until).await })
            })
            .collect();
        let mut requests = 0_u64;
        for client in clients {
            requests += client.await.unwrap();
        }
        requests as f64 / began.elapsed().as_secs_f64()
    })
}

async fn one_client(address: &str, request: &[u8], length: usize, until: Instant) -> u64 {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 64 * 1024];
    let mut requests = 0;
    while Instant::now() < until {
        stream.write_all(request).await.unwrap();
        let mut received = 0;
        while received < length {
            let read = stream.read(&mut buffer[received..]).await.unwrap();
            assert!(read > 0, "the server closed the connection");
            received += read;
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..64]));
        requests += 1;
    }
    requests
}

/// Length in bytes of the whole answer to `request`, head and body.
fn answer_length(address: &str, request: &[u8]) -> usize {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 64 * 1024];
    loop {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "no whole answer");
        answer.extend_from_slice(&buffer[..read]);
        if let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
            let body: usize = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
                .unwrap_or_else(|| panic!("an answer without a length: {text}"));
            return head + 4 + body;
        }
    }
}

/// Downloads a body and forgets it; returns its length.
pub fn download(address: &str, request: &[u8]) -> u64 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request).unwrap();
    let mut buffer = vec![0; 1024 * 1024];
    let mut head = Vec::new();
    let (length, mut received) = loop {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "no answer");
        head.extend_from_slice(&buffer[..read]);
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
            assert!(text.starts_with("http/1.1 200"), "{text}");
            let length: u64 = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
                .unwrap();
            break (length, (head.len() - end - 4) as u64);
        }
    };
    while received < length {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the body ended after {received} of {length} bytes");
        received += read as u64;
    }
    received
}

/// CPU seconds that the threads of a process have used, user and system, to the nanosecond.
/// Threads that ended are not in it.
pub fn cpu_seconds(pid: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("schedstat")).ok())
        .filter_map(|stat| stat.split_whitespace().next()?.parse::<f64>().ok())
        .sum::<f64>()
        / 1e9
}

/// CPU seconds that a process has used, user and system, with its threads that ended; to the hundredth.
pub fn cpu_seconds_of_all(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold anything; user and system time are fields 14 and 15.
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// A line of `/proc/PID/status` in MiB: `VmRSS`, `VmHWM`.
pub fn memory_mib(pid: u32, line: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = status.lines().find_map(|found| {
        found.strip_prefix(line)?.strip_prefix(':')?.split_whitespace().next()?.parse::<f64>().ok()
    });
    kib.unwrap() / 1024.0
}

/// The middle one.
pub fn median(values: &mut [f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value that `fraction` of all are at or below.
pub fn percentile(values: &mut [f64], fraction: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * fraction).round() as usize]
}
