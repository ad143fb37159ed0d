//! A cluster with HTTPS on names of different domains, a sandbox for clients in which those names
//! are known, and relays that count what clients send to each node.

use std::net::{Ipv4Addr, SocketAddr};

use crate::{
    raw::Raw,
    sandbox::Sandbox,
    support::{Cluster, Node, Options, required::installed},
    wire::Wire,
};

const PORT: u16 = 5000;
/// Relays listen at a node's address, that much further on.
const WIRE_OFFSET: u8 = 100;

/// Fields are dropped in this order: clients end before what they talk to.
pub(crate) struct Bed {
    pub(crate) sandbox: Sandbox,
    wires: Vec<Wire>,
    pub(crate) raw: Raw,
    pub(crate) cluster: Cluster,
}

impl Bed {
    /// Starts everything for tests with `programs`; `None` where those cannot run.
    pub(crate) fn start(programs: &[&str], options: Options) -> Option<Self> {
        let (sandbox, cluster) = open(programs, options, |node| wired(node.ip))?;
        let wire = |node: &Node| Wire::before(SocketAddr::from((node.ip, PORT)), wired(node.ip), PORT);
        let wires = cluster.nodes().map(wire).collect();
        Some(Self { sandbox, wires, raw: Raw::new(&cluster), cluster })
    }

    /// The same without relays, so that a stopped node refuses connections.
    pub(crate) fn start_unwired(programs: &[&str], options: Options) -> Option<Self> {
        let (sandbox, cluster) = open(programs, options, |node| node.ip)?;
        Some(Self { sandbox, wires: Vec::new(), raw: Raw::new(&cluster), cluster })
    }

    pub(crate) fn frankfurt(&self) -> &Node {
        &self.cluster.sites[0]
    }

    pub(crate) fn mumbai(&self) -> &Node {
        &self.cluster.sites[1]
    }

    /// `host:port/repo:tag` at a node.
    pub(crate) fn reference(&self, node: &Node, repo: &str, tag: &str) -> String {
        format!("{}/{repo}:{tag}", node.registry_by_name())
    }

    /// Bytes that clients have sent to the primary.
    pub(crate) fn received_by_primary(&self) -> u64 {
        self.wires[0].received()
    }

    /// Bytes that clients have sent to frankfurt.
    pub(crate) fn received_by_frankfurt(&self) -> u64 {
        self.wires[1].received()
    }

    /// The newest event of the primary's log.
    pub(crate) fn head(&self) -> u64 {
        self.cluster.primary.status()["head_seq"].as_u64().expect("a head")
    }
}

fn open(
    programs: &[&str],
    options: Options,
    address: impl Fn(&Node) -> Ipv4Addr,
) -> Option<(Sandbox, Cluster)> {
    if !installed(&[&["unshare", "nsenter", "timeout"], programs].concat()) {
        return None;
    }
    let cluster = Cluster::start(Options { tls: true, ..options });
    let hosts: String = cluster.nodes().map(|node| format!("{} {}\n", address(node), node.host)).collect();
    let sandbox = Sandbox::open(cluster.dir.path().join("clients"), &hosts, cluster.authority())?;
    Some((sandbox, cluster))
}

fn wired(node: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, d] = node.octets();
    Ipv4Addr::new(a, b, c, d + WIRE_OFFSET)
}
