use super::*;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn site(name: &str) -> SiteName {
    name.parse().unwrap()
}

fn key(id: u32) -> SealKey {
    SealKey { id, secret: random::bytes().unwrap() }
}

fn start_upload() -> TicketUse {
    TicketUse {
        class: MethodClass::StartUpload,
        repository: Some("team/app".parse().unwrap()),
        mount_from: Some("base/os".parse().unwrap()),
    }
}

fn pair(keys: &[SealKey]) -> (TicketSealer, TicketOpener) {
    let mumbai = site("mumbai");
    let sealer = TicketSealer::new(mumbai.clone());
    sealer.set_keys(keys).unwrap();
    let opener = TicketOpener::default();
    opener.set_keys(keys.iter().map(|key| (&mumbai, key))).unwrap();
    (sealer, opener)
}

#[test]
fn credentials_come_through_whole_or_absent() {
    let (sealer, opener) = pair(&[key(7)]);
    for authorization in [Some("Bearer abc.def.ghi"), Some("Basic \"quo\\ted\""), None] {
        let ticket = sealer.seal(authorization, &start_upload(), NOW).unwrap();
        let contents = opener.open(&ticket, &start_upload(), NOW).unwrap();
        assert_eq!(contents.authorization.as_ref().map(Secret::expose), authorization);
        assert_eq!(contents.site, site("mumbai"));
        assert!(ticket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        assert!(!format!("{contents:?}").contains("abc"));
    }
    let unlike = [0, 1].map(|_| sealer.seal(None, &start_upload(), NOW).unwrap());
    assert_ne!(unlike[0], unlike[1]);
}

#[test]
fn a_ticket_is_good_for_its_request_only() {
    let (sealer, opener) = pair(&[key(7)]);
    let ticket = sealer.seal(Some("Bearer x"), &start_upload(), NOW).unwrap();
    let with = |change: &dyn Fn(&mut TicketUse)| {
        let mut usage = start_upload();
        change(&mut usage);
        opener.open(&ticket, &usage, NOW).map(drop)
    };
    assert_eq!(with(&|_| ()), Ok(()));
    for class in [MethodClass::PutManifest, MethodClass::Delete, MethodClass::Token] {
        assert_eq!(with(&|usage| usage.class = class), Err(TicketError::Use), "{class:?}");
    }
    assert_eq!(with(&|usage| usage.repository = "team/ap".parse().ok()), Err(TicketError::Use));
    assert_eq!(with(&|usage| usage.repository = None), Err(TicketError::Use));
    assert_eq!(with(&|usage| usage.mount_from = None), Err(TicketError::Use));
    assert_eq!(with(&|usage| usage.mount_from = "other".parse().ok()), Err(TicketError::Use));
}

#[test]
fn a_ticket_lives_its_time_and_no_longer() {
    let (sealer, opener) = pair(&[key(7)]);
    let ticket = sealer.seal(None, &start_upload(), NOW).unwrap();
    let at = |micros: u64| opener.open(&ticket, &start_upload(), Timestamp::from_micros(micros)).map(drop);
    let start = NOW.as_micros();
    assert_eq!(at(start + 29_999_999), Ok(()));
    assert_eq!(at(start + 30_000_000), Err(TicketError::Expired));
    assert_eq!(at(start - 30_000_000), Ok(()));
    assert_eq!(at(start - 30_000_001), Err(TicketError::Expired), "it would live more than a minute");
}

#[test]
fn any_changed_bit_breaks_the_seal() {
    let keys = [key(7), key(8)];
    let (sealer, opener) = pair(&keys);
    let ticket = sealer.seal(Some("Bearer x"), &start_upload(), NOW).unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(&ticket).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let answer = opener.open(&URL_SAFE_NO_PAD.encode(changed), &start_upload(), NOW);
        let expected = match bit {
            0..8 => TicketError::Malformed,
            8..40 => TicketError::UnknownKey,
            _ => TicketError::Broken,
        };
        assert_eq!(answer, Err(expected), "bit {bit}");
    }
    let mut other_key = bytes.clone();
    other_key[4] = 8;
    let other_key = URL_SAFE_NO_PAD.encode(other_key);
    assert_eq!(opener.open(&other_key, &start_upload(), NOW), Err(TicketError::Broken));
    for length in 0..bytes.len() {
        assert!(opener.open(&URL_SAFE_NO_PAD.encode(&bytes[..length]), &start_upload(), NOW).is_err());
    }
    for bad in ["", "=", "a b", &format!("{ticket}="), &"A".repeat(TICKET_BYTES_MAX + 1)] {
        assert_eq!(opener.open(bad, &start_upload(), NOW), Err(TicketError::Malformed));
    }
}

#[test]
fn keys_rotate_and_are_bound_to_their_site() {
    let (old, new) = (key(1), key(2));
    let (sealer, opener) = pair(std::slice::from_ref(&old));
    let early = sealer.seal(None, &start_upload(), NOW).unwrap();
    let mumbai = site("mumbai");
    opener.set_keys([(&mumbai, &new), (&mumbai, &old)]).unwrap();
    sealer.set_keys(&[new.clone(), old]).unwrap();
    let late = sealer.seal(None, &start_upload(), NOW).unwrap();
    assert!(opener.open(&early, &start_upload(), NOW).is_ok());
    assert!(opener.open(&late, &start_upload(), NOW).is_ok());
    opener.set_keys([(&mumbai, &new)]).unwrap();
    assert_eq!(opener.open(&early, &start_upload(), NOW), Err(TicketError::UnknownKey));

    let frankfurt = site("frankfurt");
    opener.set_keys([(&frankfurt, &new)]).unwrap();
    assert_eq!(opener.open(&late, &start_upload(), NOW), Err(TicketError::Site));
    let keyless = TicketSealer::new(mumbai);
    assert_eq!(keyless.seal(None, &start_upload(), NOW), Err(TicketError::NoKey));
    assert_eq!(keyless.set_keys(&[]), Err(TicketError::NoKey));
}

#[test]
fn a_large_token_does_not_fit_a_redirect() {
    let (sealer, _) = pair(&[key(7)]);
    let url = |token_bytes: usize| {
        let authorization = format!("Bearer {}", "t".repeat(token_bytes));
        let ticket = sealer.seal(Some(&authorization), &start_upload(), NOW).unwrap();
        format!("https://primary.example.com/v2/team/app/blobs/uploads/?ticket={ticket}")
    };
    assert!(fits_redirect(&url(4000)));
    assert!(!fits_redirect(&url(5000)));
}
