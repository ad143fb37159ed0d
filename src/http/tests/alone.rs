use super::*;

fn public(globs: &[&str]) -> AccessRules {
    AccessRules::only_public_pull(&globs.iter().map(|glob| (*glob).to_owned()).collect::<Vec<_>>()).unwrap()
}

#[tokio::test]
async fn without_a_primary_anybody_pulls_what_is_public() {
    let primary = Primary::start().await;
    let token = primary.token(&["public/app", "team/app"], Actions::ALL);
    for name in ["public/app", "team/app"] {
        push_image(&primary, &token, name, "1", "").await;
    }
    let mut site = primary.secondary(PushMode::Redirect);
    let get = |name: &str| ask("GET", format!("/v2/{name}/manifests/1"));

    site.api.authenticator.set_public(public(&["public/**"]));
    // A primary that still issues tokens: clients with passwords need the challenge.
    site.ask(ask("GET", "/v2/")).await.is(401);
    site.ask(get("team/app")).await.is(401);
    site.ask(get("public/app")).await.is(200);

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let api = Arc::get_mut(&mut site.api).unwrap();
    api.addresses = addresses(&format!("http://{closed}"));
    let Role::Secondary(redirects) = &mut api.role else { unreachable!() };
    redirects.proxy = Proxy::new(client_config(), "the primary site");
    site.ask(ask("GET", "/v2/")).await.is(200);
    site.ask(get("public/app")).await.is(200);
    site.ask(get("public/app").by("Bearer of.yester.day")).await.is(200);
    site.ask(ask("HEAD", "/v2/public/app/manifests/1")).await.is(200);
    for refused in [
        get("team/app"),
        ask("GET", "/v2/_catalog"),
        ask("POST", "/v2/public/app/blobs/uploads/"),
        ask("PUT", "/v2/public/app/manifests/2").body("{}"),
        ask("DELETE", "/v2/public/app/manifests/1"),
    ] {
        let answer = site.ask(refused).await;
        answer.refused(503, "UNAVAILABLE");
        assert_eq!(answer.header("retry-after"), "2");
    }
}

#[tokio::test]
async fn a_primary_challenges_whatever_is_public() {
    let primary = Primary::start().await;
    primary.api.authenticator.set_public(public(&["**"]));
    primary.ask(ask("GET", "/v2/")).await.is(401);
    primary.ask(ask("GET", "/v2/public/app/manifests/1")).await.is(401);
}
