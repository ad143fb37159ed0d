//! The operator's handbook (`deploy/README.md`), carried out: from nothing to three sites, through a firewall, a move of
//! the primary, a restored backup, a lost disk and a failover. Every command in it runs as it stands there, in that
//! order, on machines made of namespaces, and images are pushed and pulled with skopeo at every step.
//!
//! CI has no systemd: what units start is started here.

#![cfg(test)]
#![expect(
    unreachable_pub,
    reason = "a test binary is reached by nobody: `pub` tells its modules apart well enough"
)]

mod book;
#[expect(dead_code, reason = "tests of clients use more of it")]
#[path = "../clients/image.rs"]
mod image;
mod machines;
#[path = "../support/mod.rs"]
mod support;

use std::{fs, net::Ipv4Addr, path::Path};

use book::Book;
use image::Image;
use machines::{Machine, Network};
use serde_json::Value;
use support::{
    path, random_hex,
    required::{installed, skip},
    wait_for,
};

const PUBLIC: &str = "registry.example.com";
const PRIMARY: &str = "registry-primary.example.com";
const REPO: &str = "team/app";
/// Where the example lets anyone pull.
const OPEN: &str = "public/app";
/// What the lines of the handbook stand for.
const TOKEN: &str = "outport-join-TOKEN";
const SITE: &str = "mumbai";

#[test]
fn the_handbook_runs_as_it_stands() {
    if !installed(&["skopeo", "ip", "nft", "unshare", "nsenter"]) {
        return;
    }
    let mut book = Book::open();
    let dir = tempfile::Builder::new().prefix("outport-test-").tempdir().unwrap();
    let Some(network) = Network::create(dir.path()) else {
        skip("no network namespaces (they need root)");
        return;
    };
    let mut fleet = Fleet::new(network, dir.path());
    let (add, join) = fleet.follow_to_three_sites(&mut book);

    // A firewall that lets no UDP out, for as long as it likes.
    let pune = &fleet.machines[3];
    pune.run(
        "nft add table inet fire && nft add chain inet fire wall '{ type filter hook output priority 0; }' \
         && nft add rule inet fire wall udp dport 5443 drop",
    );
    fleet.wait_status(3, "transport", "tcp");
    fleet.push_and_pull();
    fleet.machines[3].run("nft delete table inet fire");
    fleet.wait_status(3, "transport", "quic");

    // The primary gets another address, and its name leads there.
    fleet.machines[0].run("ip address del 10.77.0.1/24 dev eth0 && ip address add 10.77.0.11/24 dev eth0");
    fleet.machines[0].ip = Ipv4Addr::new(10, 77, 0, 11);
    fleet.lead_names();
    fleet.push_and_pull();

    fleet.watch(&mut book);
    fleet.fail_over(&mut book, (&add, &join));
    fleet.restore(&mut book);
    fleet.lose_a_disk(&mut book, (&add, &join));
    book.is_done();
}

struct Fleet {
    _network: Network,
    /// The first primary, then the sites.
    machines: Vec<Machine>,
    /// Which is the primary.
    primary: usize,
    authority: String,
    password: String,
    dir: std::path::PathBuf,
    /// The image that every tag up to the last one has, by number.
    images: Vec<Image>,
    /// One that anyone may pull.
    open: Option<Image>,
}

impl Fleet {
    fn new(network: Network, dir: &Path) -> Self {
        let machines = ["frankfurt", SITE, "oslo", "pune"].into_iter().zip(1..);
        let machines: Vec<_> =
            machines.map(|(name, number)| network.machine(name, Ipv4Addr::new(10, 77, 0, number))).collect();
        let authority = path(&machines[0].etc().join("authority.crt")).to_owned();
        Self {
            _network: network,
            machines,
            primary: 0,
            authority,
            password: String::new(),
            dir: dir.to_owned(),
            images: Vec::new(),
            open: None,
        }
    }

    fn at_primary(&self, line: &str) -> String {
        self.machines[self.primary].run(line)
    }

    /// As DNS would: the one URL leads to the machine that a client is at.
    fn lead_names(&self) {
        let primary = self.machines[self.primary].ip;
        for machine in &self.machines {
            machine.names(&[(PRIMARY, primary), (PUBLIC, machine.ip)]);
        }
    }

    fn follow_to_three_sites(&mut self, book: &mut Book) -> (String, String) {
        self.lead_names();
        for words in ["outport cert init", "outport cert issue primary", "outport cert issue https"] {
            self.at_primary(&book.next(words));
        }
        let said = self.at_primary(&book.next("outport user add"));
        let password = said.split_whitespace().last().expect("the password that was made");
        self.password = password.to_owned();
        let adapted = include_str!("../../deploy/examples/primary.toml");
        fs::write(self.machines[0].etc().join("primary.toml"), adapted).unwrap();
        self.at_primary(&book.next("outport config check"));
        self.start(0, "outport-primary");
        assert!(self.at_primary(&book.ran("outport status")).contains("primary"));
        self.push(0);
        self.open = self.try_push_as(0, "1", &format!("{OPEN}:1"));

        let (add, join) = (book.next("outport site add mumbai"), book.next("outport secondary"));
        for site in 1..self.machines.len() {
            self.join(site, (&add, &join));
        }
        self.push(1);
        let listed = self.at_primary(&book.next("outport site list"));
        for site in &self.machines[1..] {
            assert!(listed.contains(site.name), "{listed}");
        }
        self.at_primary(&book.next("outport wait team/app:2"));
        self.pull_all();
        (add, join)
    }

    /// Lets a machine join as the handbook says of the first one, and hands it to its unit.
    fn join(&mut self, site: usize, (add, join): (&str, &str)) {
        let name = self.machines[site].name;
        let said = self.at_primary(&add.replace(SITE, name));
        let token = said.split_whitespace().find(|word| word.starts_with("outport-join-"));
        let join = join.replace(TOKEN, token.expect("a token"));
        self.machines[site].begin(&join);
        self.wait_following(site);
        self.machines[site].end(&join, "INT");
        self.start(site, "outport-secondary");
        self.wait_following(site);
    }

    fn watch(&self, book: &mut Book) {
        let shown = self.at_primary(&format!("{} | head -3", book.ran("outport status --watch")));
        assert!(!shown.is_empty());
        let shown = self.at_primary("outport log show --follow | head -2");
        assert_eq!(shown.lines().count(), 2, "{shown}");
        let why = book.ran("outport why REPO:TAG --site SITE");
        let why = self.at_primary(&why.replace("REPO:TAG", "team/app:1").replace("SITE", SITE));
        assert!(why.contains("team/app:1"), "{why}");
    }

    fn fail_over(&mut self, book: &mut Book, (add, join): (&str, &str)) {
        // Prepare.
        let (old, new) = (&self.machines[0], &self.machines[1]);
        for entry in fs::read_dir(old.etc()).unwrap() {
            let file = entry.unwrap().path();
            let copy = new.etc().join(file.file_name().unwrap());
            fs::copy(&file, copy).unwrap();
        }
        self.at_primary(&book.next("outport drain --until mumbai"));
        // It takes no pushes, until it is told to again.
        assert!(self.try_push(2).is_none(), "a primary that is drained takes a push");
        self.at_primary(&book.ran("outport drain --undo"));
        self.push_and_pull();
        self.at_primary("outport drain --until mumbai");
        self.systemctl(0, &book.next("systemctl stop outport-primary"));
        // Pulls go on meanwhile: here without a token, of which there are no new ones.
        for site in 1..4 {
            let open = self.open.as_ref().unwrap();
            assert_eq!(self.try_pull(site, &format!("{OPEN}:1"), "").as_deref(), Some(&*open.manifest));
        }
        self.systemctl(1, &book.next("systemctl stop outport-secondary"));
        let promote = book.next("outport promote");
        let saved = promote.split_whitespace().last().unwrap();
        let data = self.machines[0].data();
        let data = path(&data);
        self.machines[1].run(&format!("mkdir {saved} && cp -r {data}/keys {data}/sites.json {saved}/"));
        self.machines[1].run(&promote);
        self.systemctl(1, &book.next("systemctl start outport-primary"));
        self.primary = 1;
        self.lead_names();
        for site in [2, 3] {
            self.wait_following(site);
        }
        self.push(2);
        self.push(1);
        self.wait_all();
        for machine in 1..4 {
            self.pull_at(machine);
        }

        // The old machine comes back as a site.
        self.machines[0].wipe();
        self.authority = path(&self.machines[1].etc().join("authority.crt")).to_owned();
        self.join(0, (&book.ran(add), join));
        self.push_and_pull();
    }

    fn restore(&mut self, book: &mut Book) {
        let primary = self.primary;
        self.stop(primary, "outport-primary");
        let backup = self.dir.join("backup");
        let (data, backup) = (self.machines[primary].data(), path(&backup).to_owned());
        let data = path(&data).to_owned();
        self.at_primary(&format!("cp -a {data} {backup}"));
        self.start(primary, "outport-primary");
        self.push_and_pull();
        let lost = format!("{REPO}:{}", self.images.pop().unwrap().version);
        self.stop(primary, "outport-primary");
        self.at_primary(&format!("rm -r {data}/* && cp -a {backup}/. {data}/"));
        let line = book.ran("outport primary --restored");
        let line = format!("{line} --config /etc/outport/primary.toml");
        self.machines[primary].begin(&line);
        for site in self.sites() {
            wait_for("the sites to drop what was lost", || {
                self.try_pull(site, &lost, &self.creds()).is_none().then_some(())
            });
            self.wait_following(site);
        }
        self.machines[primary].end(&line, "INT");
        self.start(primary, "outport-primary");
        self.push_and_pull();
    }

    fn lose_a_disk(&mut self, book: &mut Book, lines: (&str, &str)) {
        self.stop(2, "outport-secondary");
        self.machines[2].wipe();
        let remove = book.ran("outport site remove NAME");
        self.at_primary(&remove.replace("NAME", self.machines[2].name));
        self.join(2, lines);
        self.push_and_pull();
    }

    fn sites(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|machine| *machine != self.primary).collect()
    }

    /// Pushes an image through a site, and pulls every image everywhere.
    fn push_and_pull(&mut self) {
        let through = self.sites()[self.images.len() % 3];
        self.push(through);
        self.wait_all();
        self.pull_all();
    }

    fn wait_all(&self) {
        let newest = &self.images.last().unwrap().version;
        self.at_primary(&format!("outport wait {REPO}:{newest} --all-sites --complete --timeout 1m"));
    }

    fn push(&mut self, machine: usize) {
        let image = wait_for("a push to be taken", || self.try_push(machine));
        self.images.push(image);
    }

    fn try_push(&self, machine: usize) -> Option<Image> {
        let tag = (self.images.len() + 1).to_string();
        self.try_push_as(machine, &tag, &format!("{REPO}:{tag}"))
    }

    fn try_push_as(&self, machine: usize, version: &str, reference: &str) -> Option<Image> {
        let image = Image::make(&self.dir.join(format!("images-{}", random_hex())), version);
        let (creds, from) = (&self.password, image.oci());
        let to = format!("docker://{PUBLIC}/{reference}");
        self.machines[machine]
            .attempt(&self.skopeo(&format!("copy --dest-creds admin:{creds} {from} {to}")))?;
        Some(image)
    }

    fn pull_all(&self) {
        (0..self.machines.len()).for_each(|machine| self.pull_at(machine));
    }

    /// Pulls all images there, and compares.
    fn pull_at(&self, machine: usize) {
        for image in &self.images {
            let pulled = self.try_pull(machine, &format!("{REPO}:{}", image.version), &self.creds());
            let name = self.machines[machine].name;
            assert_eq!(pulled.as_deref(), Some(&*image.manifest), "{} at {name}", image.version);
        }
    }

    /// The manifest of an image of which everything was pulled.
    fn try_pull(&self, machine: usize, reference: &str, creds: &str) -> Option<Vec<u8>> {
        let to = self.dir.join(format!("pulled-{}", random_hex()));
        let copy = format!("copy {creds} docker://{PUBLIC}/{reference} dir:{}", path(&to));
        self.machines[machine].attempt(&self.skopeo(&copy))?;
        let manifest = fs::read(to.join("manifest.json")).unwrap();
        fs::remove_dir_all(to).unwrap();
        Some(manifest)
    }

    fn creds(&self) -> String {
        format!("--src-creds admin:{}", self.password)
    }

    fn skopeo(&self, words: &str) -> String {
        format!("SSL_CERT_FILE={} skopeo --insecure-policy {words}", self.authority)
    }

    fn status(&self, machine: usize) -> Option<Value> {
        serde_json::from_str(&self.machines[machine].attempt("outport status --json")?).ok()
    }

    fn wait_following(&self, site: usize) {
        self.wait_status(site, "state", "streaming");
    }

    fn wait_status(&self, machine: usize, key: &str, value: &str) {
        let what = format!("{key} of {} to be {value}", self.machines[machine].name);
        wait_for(&what, || (self.status(machine)?[key] == value).then_some(()));
    }

    fn start(&mut self, machine: usize, unit: &str) {
        self.systemctl(machine, &format!("systemctl start {unit}"));
    }

    fn stop(&mut self, machine: usize, unit: &str) {
        self.systemctl(machine, &format!("systemctl stop {unit}"));
    }

    /// What systemd would do.
    fn systemctl(&mut self, machine: usize, line: &str) {
        let (verb, unit) = line.strip_prefix("systemctl ").and_then(|rest| rest.split_once(' ')).unwrap();
        let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd");
        let unit = fs::read_to_string(units.join(format!("{unit}.service"))).unwrap();
        let starts = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/")).unwrap();
        match verb {
            "start" => {
                self.machines[machine].begin(starts);
                wait_for("a node to start", || self.status(machine));
            }
            "stop" => self.machines[machine].end(starts, "TERM"),
            verb => panic!("systemctl {verb}"),
        }
    }
}
