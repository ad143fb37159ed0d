//! What runs on a machine: a primary, or a site that follows it or another site, wired as
//! `outport::app` wires them.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use outport::{
    app::relay::Relayed,
    auth::{
        authority::{Identity, site_of},
        tls,
    },
    fetch::{
        FlightMetrics, FlightOptions, Flights, Upstream,
        primary::{QuicUpstream, QuicUpstreamOptions},
        quic::{self, Network as _, TransportOptions},
    },
    policy::{Keep, Policy, PolicyRule},
    primary::{
        above::Above,
        fleet::Fleet,
        log_stream::LogPublisher,
        publisher::{Admit, Publisher},
        requests::Answerer,
        source::{OwnSource, PrimaryIdentity, Relays, Source},
    },
    registry::{
        Edge, Exclusion, Intents, Journal, Past, PullService, PushLimits, PushService, SessionView, Site,
    },
    secondary::{
        detail::About,
        dial::Dialer,
        downstream::{Downstream, PassedOn},
        memory::Memory,
        prefetch::{Prefetch, PrefetchOptions},
        subscriber::{Subscription, SubscriptionOptions, SubscriptionParts},
    },
    shutdown::Shutdown,
    store::Store,
    watch,
};
use outport_proto::{
    SiteName,
    frame::{ALPN, AuthMode, Keys},
};

use crate::{
    identities::{identities, site_name},
    machine::{Machine, Role},
    world::World,
};

const CLUSTER: &str = "world";
const REPLICATION_PORT: u16 = 7000;
/// Largest datagram of the world: what every path carries, so that nobody looks for more.
const DATAGRAM_BYTES: u16 = 1200;
/// Connections a node takes at once.
const CONNECTIONS_MAX: usize = 64;

impl World {
    /// The sites that follow machine `number`.
    fn followers(&self, number: usize) -> anyhow::Result<Vec<SiteName>> {
        let all = 1..self.machines.len();
        all.filter(|site| self.upstreams[*site] == number).map(|site| site_name(site - 1)).collect()
    }

    /// Every site that others follow, with those.
    fn relays(&self) -> anyhow::Result<Relays> {
        let sites = 1..self.machines.len();
        let all = sites.map(|site| Ok((site_name(site - 1)?, self.followers(site)?)));
        let all = all.collect::<anyhow::Result<BTreeMap<_, _>>>()?;
        Ok(Relays::new(all.into_iter().filter(|(_, followers)| !followers.is_empty()).collect()))
    }

    pub(crate) fn serve_primary(
        &self,
        machine: &Machine,
        journal: &Journal,
        store: &Store,
        shutdown: &Shutdown,
    ) -> anyhow::Result<PushService> {
        let clock = machine.shared_clock();
        let limits = PushLimits::default();
        let push =
            PushService::new(journal.clone(), store.clone(), Arc::clone(&clock), limits, shutdown.clone());
        let (_, keys_changed) = watch::channel(1);
        let relays = self.relays()?;
        let source: Arc<dyn Source> = Arc::new(OwnSource {
            identity: PrimaryIdentity {
                cluster: CLUSTER.to_owned(),
                token_realm: String::new(),
                token_service: String::new(),
                public_url: String::new(),
                path: Vec::new(),
            },
            journal: journal.clone(),
            clock,
            keys_of: Arc::new(|_| {
                Ok(Keys {
                    auth: AuthMode::Anonymous,
                    public_pull: Vec::new(),
                    seal: Vec::new(),
                    generation: 1,
                })
            }),
            keys_changed,
            relays: relays.clone(),
            authenticator: None,
            unsure: None,
            members: None,
        });
        let fleet =
            Fleet::new(self.followers(machine.number)?.into_iter().chain(relays.behind_any()), relays);
        let publisher =
            LogPublisher { source: Arc::clone(&source), journal: journal.clone(), fleet, tunnelled: None };
        let answerer = Answerer::new(journal.clone(), store.clone(), source);
        self.publish(machine, &identities()?.primary, publisher, answerer, shutdown)?;
        Ok(push)
    }

    /// Serves the sites that follow this machine.
    fn publish(
        &self,
        machine: &Machine,
        identity: &Identity,
        publisher: LogPublisher,
        answerer: Answerer,
        shutdown: &Shutdown,
    ) -> anyhow::Result<()> {
        let followers = self.followers(machine.number)?;
        let admit: Admit = Arc::new(move |certificate| {
            site_of(certificate)
                .filter(|site| followers.contains(site))
                .ok_or_else(|| "not a site".to_owned())
        });
        let authorities = [identities()?.authority.clone()];
        let tls = tls::node_server(identity, &authorities, &[ALPN]).context("set up TLS")?;
        let server = quic::server_config(&tls, &transport(TransportOptions::upstream()))?;
        let address = SocketAddr::new(machine.host, REPLICATION_PORT);
        let endpoint = self.network.of(machine.host).endpoint(address, Some(server), DATAGRAM_BYTES)?;
        let publisher = Publisher::new(admit, publisher, answerer, CONNECTIONS_MAX);
        shutdown.spawn(publisher.serve(endpoint, shutdown.clone()));
        Ok(())
    }

    pub(crate) fn follow(
        &self,
        machine: &Machine,
        life: u64,
        site: Site,
        journal: &Journal,
        shutdown: &Shutdown,
    ) -> anyhow::Result<(PullService, Role)> {
        let dir = machine.dir(life);
        let name = site_name(machine.number - 1)?;
        let clock = machine.shared_clock();
        let store = site.store.clone();
        let (link, quic_upstream) = QuicUpstream::new(&QuicUpstreamOptions::default());
        let upstream: Arc<dyn Upstream> = Arc::new(quic_upstream.clone());
        let flights = Flights::new(
            store.clone(),
            Arc::clone(&upstream),
            shutdown.clone(),
            FlightOptions::default(),
            FlightMetrics::default(),
        );
        let (session_feed, session) = SessionView::new();
        let memory = Memory::open(&dir)?;
        let past = if memory.last().is_none() { Past::None } else { Past::Perhaps };
        let (disk, boot) = {
            let state = machine.state();
            (state.intents.clone(), state.boots.to_string())
        };
        let owner = (name.clone(), self.intents_max);
        let intents = Intents::open_on(Arc::new(disk), Some(&boot), past, owner, clock.steady_time());
        let edge = Edge {
            upstream: Arc::clone(&upstream),
            flights: flights.clone(),
            session: session.clone(),
            intents: intents.clone(),
            shutdown: shutdown.clone(),
        };
        let pull = PullService::secondary(site, edge);
        pull.follow(journal, shutdown);
        let keep = if machine.copies_ahead() { Keep::Eager } else { Keep::Lazy };
        let rule = PolicyRule { keep: Some(keep), ..PolicyRule::default() };
        let policy = Arc::new(Policy::new(&[rule]).context("make a policy")?);
        let (prefetch, progress) = Prefetch::new(
            &dir,
            journal.clone(),
            store.clone(),
            Arc::clone(&policy),
            flights.clone(),
            PrefetchOptions::default(),
        );
        let identities = identities()?;
        let authorities = [identities.authority.clone()];
        let identity = identities.sites.get(machine.number - 1).context("find a site's identity")?;
        let tls = tls::node_client(identity, &authorities, &[ALPN]).context("set up TLS")?;
        let (log, bulk) = (transport(TransportOptions::log()), transport(TransportOptions::bulk()));
        let dialer = Dialer::new(&tls, &log, &bulk)?.over(Arc::new(self.network.of(machine.host)));
        let followed = self.upstreams[machine.number];
        let dialer = if followed == 0 { dialer } else { dialer.to_relay(site_name(followed - 1)?) };
        let downstream = Downstream::default();
        let fleet = Fleet::of_relay(self.followers(machine.number)?);
        let is_followed = self.upstreams.contains(&machine.number);
        if is_followed {
            let passed_on = PassedOn::new(
                name.clone(),
                &dir,
                downstream.clone(),
                journal.clone(),
                Arc::clone(&clock),
                quic_upstream,
            );
            let source: Arc<dyn Source> = Arc::new(Relayed(passed_on));
            let exclusion = Arc::new(Exclusion::new(policy, journal.index().clone()));
            let above = Above { upstream, flights, exclusion };
            let answerer = Answerer::relaying(journal.clone(), store.clone(), Arc::clone(&source), above);
            let publisher =
                LogPublisher { source, journal: journal.clone(), fleet: fleet.clone(), tunnelled: None };
            self.publish(machine, identity, publisher, answerer, shutdown)?;
        }
        let details = fleet.clone();
        let reports = move || fleet.behind();
        let parts = SubscriptionParts {
            dialer,
            journal: journal.clone(),
            store,
            memory,
            clock,
            progress: progress.clone(),
            link,
            session: session_feed,
            on_identity: Arc::new(|_| {}),
            downstream,
            reports: is_followed.then(|| Arc::new(reports) as _),
            tracing: outport::telemetry::trace::Tracing::default(),
            about: About {
                behind: is_followed.then(|| Arc::new(move || details.details()) as _),
                ..About::default()
            },
        };
        let address = SocketAddr::new(self.machines[followed].host, REPLICATION_PORT);
        let options = SubscriptionOptions {
            site: name,
            node: String::new(),
            primaries: vec![address.to_string()],
            staleness_bound_ms: 1000,
        };
        let (subscription, _) = Subscription::new(options, parts);
        shutdown.spawn(subscription.run(shutdown.clone()));
        shutdown.spawn(prefetch.run(shutdown.clone()));
        Ok((pull, Role::Site { session, intents, progress }))
    }
}

fn transport(options: TransportOptions) -> TransportOptions {
    TransportOptions { datagram_bytes_max: DATAGRAM_BYTES, ..options }
}
