//! A gateway in front of a registry that knows its callers itself: by password, and by tokens of a service
//! that neither the registry nor Outport runs.

use std::{fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    bed::Bed,
    image::Image,
    raw::Ways,
    sandbox::Done,
    scenario::{self, As, Tool},
    support::{
        Node, Options, USER, outport, path,
        registry::Lets,
        token_service::{ISSUER, NamesKey, SERVICE, TokenService, User},
        wait_for,
    },
};

const ANA: &str = "ana:s3cret";
const BOB: &str = "bob:hunter2";
const UNAUTHORIZED: &[&str] = &["unauthorized", "authentication required", "invalid username/password"];

fn login(bed: &Bed, node: &Node, credentials: &str) -> Done {
    let (user, password) = credentials.split_once(':').unwrap();
    let file = bed.sandbox.path(&format!("login-{user}.json"));
    let host = node.registry_by_name();
    bed.sandbox.run(&["skopeo", "login", "--authfile", path(&file), "-u", user, "-p", password, &host])
}

fn push(bed: &Bed, image: &Image, node: &Node, credentials: &str) -> Done {
    let to = format!("docker://{}", bed.reference(node, "team/app", &image.version));
    bed.sandbox.run(&["skopeo", "copy", "--dest-creds", credentials, &image.oci(), &to])
}

/// Pulls version one, as `credentials` or as nobody.
fn pull(bed: &Bed, node: &Node, credentials: &str) -> Done {
    let from = format!("docker://{}", bed.reference(node, "team/app", "one"));
    let dir = tempfile::tempdir_in(bed.sandbox.path("tmp")).unwrap();
    let to = format!("dir:{}", path(dir.path()));
    match credentials {
        "" => bed.sandbox.run(&["skopeo", "copy", "--src-no-creds", &from, &to]),
        _ => bed.sandbox.run(&["skopeo", "copy", "--src-creds", credentials, &from, &to]),
    }
}

#[test]
fn a_registry_with_passwords_is_asked_who_may() {
    let options = Options {
        registry: Some(Lets::Users),
        auth_toml: Some("[auth]\nmode = 'delegated'\n[auth.delegated]\nallow_seconds = 3600\n".to_owned()),
        ..Options::default()
    };
    let Some(mut bed) = Bed::start_unwired(&["skopeo"], options) else { return };
    let registry = bed.cluster.registry.as_ref().unwrap();
    registry.let_in(&[("ana", "s3cret"), ("bob", "hunter2")]);
    let image = Image::make(&bed.sandbox.path("images"), "one");

    for node in [&bed.cluster.primary, bed.frankfurt(), bed.mumbai()] {
        login(&bed, node, ANA).success();
        login(&bed, node, "ana:wrong").failure(UNAUTHORIZED);
    }
    push(&bed, &image, bed.frankfurt(), "ana:wrong").failure(UNAUTHORIZED);
    push(&bed, &image, bed.frankfurt(), ANA).success();
    for node in [bed.mumbai(), &bed.cluster.primary] {
        let asked = node.metric("outport_verdicts_asked_total", "");
        pull(&bed, node, BOB).success();
        assert!(node.metric("outport_verdicts_remembered_total", "") >= 3.0, "a layer each, and the config");
        assert!(
            node.metric("outport_verdicts_asked_total", "") <= asked + 2.0,
            "the repository and the ping"
        );
        pull(&bed, node, "bob:wrong").failure(UNAUTHORIZED);
        pull(&bed, node, "").failure(UNAUTHORIZED);
    }
    push(&bed, &image, &bed.cluster.primary, BOB).success();

    // The yes for bob outlives bob, unless it is taken back.
    registry.let_in(&[("ana", "s3cret")]);
    pull(&bed, bed.mumbai(), BOB).success();
    assert!(outport(&["revoke", "--admin", &bed.cluster.primary.admin()]).contains("asked again"));
    wait_for("bob to be refused", || (!pull(&bed, bed.mumbai(), BOB).succeeded).then_some(()));
    pull(&bed, bed.mumbai(), BOB).failure(UNAUTHORIZED);
    pull(&bed, &bed.cluster.primary, BOB).failure(UNAUTHORIZED);
    pull(&bed, bed.mumbai(), ANA).success();

    // Without the primary, what was said goes on to be true, and nothing new is.
    bed.cluster.primary.stop();
    pull(&bed, bed.mumbai(), ANA).success();
    let client = bed.raw.client();
    let unknown = format!("Basic {}", STANDARD.encode("new:user"));
    let unsaid =
        client.get(&bed.mumbai().registry(), "/v2/team/app/manifests/one", &[("Authorization", &unknown)]);
    assert_eq!((unsaid.status, &*unsaid.code()), (503, "UNAVAILABLE"), "{}", unsaid.text());
    assert!(unsaid.text().contains("the registry was asked"), "{}", unsaid.text());
}

fn user(credentials: &str, names_key: NamesKey, may: fn(&str, &str) -> bool) -> User {
    let (name, password) = credentials.split_once(':').unwrap();
    User { name: name.to_owned(), password: password.to_owned(), names_key, may }
}

/// A gateway in front of a registry that believes tokens of `service`, as the gateway does; files lie in
/// `files`, and the gateway is one of the users.
fn believing(service: &TokenService, files: &Path) -> Options {
    let (theirs, ours, password) =
        (files.join("registry.crt"), files.join("gateway.crt"), files.join("password"));
    service.write_bundle(&theirs);
    service.write_bundle(&ours);
    fs::write(&password, "secret").unwrap();
    service.let_in(user("gateway:secret", NamesKey::Libtrust, |_, _| true));
    let realm = service.realm();
    let token = format!("realm: '{realm}', service: '{SERVICE}', issuer: '{ISSUER}'");
    let own = format!("realm = '{realm}'\nservice = '{SERVICE}'\nissuer = '{ISSUER}'\n");
    Options {
        registry: Some(Lets::Anybody),
        registry_yaml: format!("auth:\n  token: {{{token}, rootcertbundle: '{}'}}\n", path(&theirs)),
        gateway_toml: format!("username = 'gateway'\npassword_file = '{}'\n", path(&password)),
        auth_toml: Some(format!(
            "[auth]\nmode = 'token'\n[auth.token]\n{own}certificates = '{}'\n",
            path(&ours)
        )),
        ..Options::default()
    }
}

#[test]
fn a_registry_with_tokens_of_another_service_is_pulled_from_every_site() {
    let service = TokenService::start(vec![
        user(ANA, NamesKey::Libtrust, |repo, _| repo == "team/app"),
        user(BOB, NamesKey::Chain, |repo, action| repo == "team/app" && action == "pull"),
        user(":", NamesKey::Libtrust, |_, _| false),
    ]);
    let files = tempfile::tempdir().unwrap();
    let options = believing(&service, files.path());
    let Some(bed) = Bed::start_unwired(&["skopeo"], options) else { return };
    let image = Image::make(&bed.sandbox.path("images"), "one");
    for node in [&bed.cluster.primary, bed.frankfurt(), bed.mumbai()] {
        login(&bed, node, ANA).success();
        login(&bed, node, "ana:wrong").failure(UNAUTHORIZED);
    }
    push(&bed, &image, bed.frankfurt(), BOB).failure(&["unauthorized", "denied", "authentication required"]);
    push(&bed, &image, bed.frankfurt(), ANA).success();
    for credentials in [ANA, BOB] {
        pull(&bed, bed.mumbai(), credentials).success();
        pull(&bed, &bed.cluster.primary, credentials).success();
    }
    pull(&bed, bed.mumbai(), "").failure(UNAUTHORIZED);

    // The key is another one from now on: a site hears of it as soon as somebody comes with a token of it.
    let old = service.authorization("ana", "team/app");
    service.renew_key();
    service.write_bundle(&files.path().join("gateway.crt"));
    let new = service.authorization("ana", "team/app");
    let get = |authorization: &str| {
        let target = "/v2/team/app/manifests/one";
        bed.raw.client().get(&bed.mumbai().registry(), target, &[("Authorization", authorization)]).status
    };
    assert_eq!(get(&new), 200);
    assert_eq!(get(&old), 401, "a key that went is not believed any longer");
}

/// What everybody does with a registry ([`scenario`]), by its own users.
fn by_password(tool: &Tool) {
    let options = Options {
        registry: Some(Lets::Users),
        auth_toml: Some("[auth]\nmode = 'delegated'\n".to_owned()),
        ..Options::default()
    };
    let set_up = |bed: &Bed| {
        let registry = bed.cluster.registry.as_ref().unwrap();
        registry.let_in(&[(USER, &bed.cluster.password)]);
    };
    scenario::run_by(tool, options, Ways::Password, set_up);
}

/// The same by tokens of another service, which lets anybody pull.
fn by_token(tool: &Tool) {
    by_service(tool, |believing| believing);
}

/// The same by tokens that mean nothing to anybody but the registry.
fn by_opaque_token(tool: &Tool) {
    by_service(tool, |believing| Options {
        auth_toml: Some("[auth]\nmode = 'delegated'\n".to_owned()),
        gateway_toml: format!("{}token_realm = '{}'\n", believing.gateway_toml, realm_of(&believing)),
        ..believing
    });
}

fn realm_of(options: &Options) -> String {
    let yaml = &options.registry_yaml;
    let (_, rest) = yaml.split_once("realm: '").unwrap();
    rest.split_once('\'').unwrap().0.to_owned()
}

fn by_service(tool: &Tool, adapted: impl FnOnce(Options) -> Options) {
    let service = TokenService::start(vec![user(":", NamesKey::Chain, |_, action| action == "pull")]);
    let files = tempfile::tempdir().unwrap();
    let options = adapted(believing(&service, files.path()));
    let ways = Ways::Service { address: service.address.to_string() };
    let set_up = |bed: &Bed| {
        let password = bed.cluster.password.clone();
        let (name, names_key) = (USER.to_owned(), NamesKey::Libtrust);
        service.let_in(User { name, password, names_key, may: |_, _| true });
    };
    scenario::run_by(tool, options, ways, set_up);
}

/// The same without any check.
fn by_nothing(tool: &Tool) {
    let options = Options {
        registry: Some(Lets::Anybody),
        auth_toml: Some("[auth]\nmode = 'anonymous'\n".to_owned()),
        ..Options::default()
    };
    // buildah looks for the file in which others keep their passwords.
    let set_up = |bed: &Bed| fs::write(bed.sandbox.credentials(As::User("")), "{}").unwrap();
    scenario::run_by(tool, options, Ways::Nothing, set_up);
}

macro_rules! everybody {
    ($($test:ident: $way:ident($tool:ident);)*) => {
        $(
            #[test]
            fn $test() {
                $way(&crate::$tool::TOOL);
            }
        )*
    };
}
everybody! {
    docker_goes_by_the_registrys_passwords: by_password(docker);
    podman_goes_by_the_registrys_passwords: by_password(podman);
    skopeo_goes_by_the_registrys_passwords: by_password(skopeo);
    buildah_goes_by_the_registrys_passwords: by_password(buildah);
    containerd_goes_by_the_registrys_passwords: by_password(ctr);
    docker_goes_by_tokens_of_another_service: by_token(docker);
    podman_goes_by_tokens_of_another_service: by_token(podman);
    skopeo_goes_by_tokens_of_another_service: by_token(skopeo);
    buildah_goes_by_tokens_of_another_service: by_token(buildah);
    containerd_goes_by_tokens_of_another_service: by_token(ctr);
    docker_goes_by_tokens_that_only_the_registry_knows: by_opaque_token(docker);
    podman_goes_by_tokens_that_only_the_registry_knows: by_opaque_token(podman);
    skopeo_goes_by_tokens_that_only_the_registry_knows: by_opaque_token(skopeo);
    buildah_goes_by_tokens_that_only_the_registry_knows: by_opaque_token(buildah);
    containerd_goes_by_tokens_that_only_the_registry_knows: by_opaque_token(ctr);
    docker_needs_nothing_where_nobody_does: by_nothing(docker);
    podman_needs_nothing_where_nobody_does: by_nothing(podman);
    skopeo_needs_nothing_where_nobody_does: by_nothing(skopeo);
    buildah_needs_nothing_where_nobody_does: by_nothing(buildah);
    containerd_needs_nothing_where_nobody_does: by_nothing(ctr);
}
