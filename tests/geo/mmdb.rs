//! A GeoIP database in MaxMind's format (version 2), for a few networks.

use std::net::Ipv4Addr;

/// Where a network is.
pub struct Place {
    pub network: Ipv4Addr,
    pub prefix: u8,
    pub latitude: f64,
    pub longitude: f64,
    /// `EU`, `AS` ..
    pub continent: &'static str,
}

const RECORD_BITS: u16 = 32;
const SEPARATOR: [u8; 16] = [0; 16];
const METADATA: &[u8] = b"\xab\xcd\xefMaxMind.com";

/// The two ways on from a node of the search tree.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Nowhere,
    Node(usize),
    Place(usize),
}

/// The database's file.
pub fn database(places: &[Place]) -> Vec<u8> {
    let mut nodes = vec![[Way::Nowhere; 2]];
    for (number, place) in places.iter().enumerate() {
        let (address, mut node) = (place.network.to_bits(), 0);
        for bit in 0..place.prefix {
            let side = (address >> (31 - bit) & 1) as usize;
            if bit + 1 == place.prefix {
                nodes[node][side] = Way::Place(number);
            } else if let Way::Node(next) = nodes[node][side] {
                node = next;
            } else {
                nodes.push([Way::Nowhere; 2]);
                let next = nodes.len() - 1;
                nodes[node][side] = Way::Node(next);
                node = next;
            }
        }
    }
    let mut data = Vec::new();
    let mut offsets = Vec::new();
    for place in places {
        offsets.push(data.len());
        map(&mut data, 2);
        text(&mut data, "continent");
        map(&mut data, 1);
        text(&mut data, "code");
        text(&mut data, place.continent);
        text(&mut data, "location");
        map(&mut data, 2);
        text(&mut data, "latitude");
        double(&mut data, place.latitude);
        text(&mut data, "longitude");
        double(&mut data, place.longitude);
    }
    let mut file = Vec::new();
    for way in nodes.iter().flatten() {
        let record = match *way {
            Way::Nowhere => nodes.len(),
            Way::Node(next) => next,
            Way::Place(number) => nodes.len() + SEPARATOR.len() + offsets[number],
        };
        file.extend_from_slice(&u32::try_from(record).unwrap().to_be_bytes());
    }
    file.extend_from_slice(&SEPARATOR);
    file.extend_from_slice(&data);
    file.extend_from_slice(METADATA);
    map(&mut file, 9);
    for (name, value) in [
        ("binary_format_major_version", 2),
        ("binary_format_minor_version", 0),
        ("ip_version", 4),
        ("record_size", RECORD_BITS),
    ] {
        text(&mut file, name);
        file.push(5 << 5 | 2);
        file.extend_from_slice(&value.to_be_bytes());
    }
    text(&mut file, "node_count");
    file.push(6 << 5 | 4);
    file.extend_from_slice(&u32::try_from(nodes.len()).unwrap().to_be_bytes());
    text(&mut file, "build_epoch");
    // Types above 7 are a second byte: 9 is a number of 64 bits, 11 a list.
    file.extend_from_slice(&[8, 9 - 7]);
    file.extend_from_slice(&1_800_000_000_u64.to_be_bytes());
    text(&mut file, "database_type");
    text(&mut file, "GeoLite2-City");
    text(&mut file, "languages");
    file.extend_from_slice(&[0, 11 - 7]);
    text(&mut file, "description");
    map(&mut file, 0);
    file
}

fn map(data: &mut Vec<u8>, pairs: u8) {
    data.push(7 << 5 | pairs);
}

fn text(data: &mut Vec<u8>, text: &str) {
    assert!(text.len() < 29, "longer ones have another form");
    data.push(2 << 5 | text.len() as u8);
    data.extend_from_slice(text.as_bytes());
}

fn double(data: &mut Vec<u8>, value: f64) {
    data.push(3 << 5 | 8);
    data.extend_from_slice(&value.to_be_bytes());
}
