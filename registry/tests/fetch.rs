//! Manifests and blobs against the registry in memory: names, platforms, log-in, faults, hostile answers.

use std::sync::Arc;
use std::time::Duration;

use rbuild_oci::{Descriptor, Digest, MediaType, Platform, Reference};
use rbuild_registry::memory::{Access, Action, Behaviour, Fault, Registry, TokenRules};
use rbuild_registry::{
    Client, ClientOptions, Credentials, Error, Mirrors, Offers, Place, Retry, Rules, RulesSource, Trust,
};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn options() -> ClientOptions {
    let retry = Retry { attempts: 4, first: Duration::from_millis(5), longest: Duration::from_millis(50) };
    ClientOptions { retry, ..ClientOptions::default() }
}

fn client() -> Client {
    Client::new(options()).unwrap()
}

fn client_as(credentials: Credentials) -> Client {
    Client::new(ClientOptions { credentials: Arc::new(move |_| Ok(credentials.clone())), ..options() }).unwrap()
}

fn password() -> Credentials {
    Credentials::Password { username: "u".into(), password: "p".into() }
}

fn name(registry: &Registry, rest: &str) -> Reference {
    Reference::parse(&format!("{}/{rest}", registry.host())).unwrap()
}

fn amd64() -> Platform {
    Platform::parse("linux/amd64").unwrap()
}

/// Puts an image without layers in place; gives its manifest's digest and size.
fn image(registry: &Registry, repository: &str, tag: Option<&str>, architecture: &str) -> (Digest, usize) {
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
    );
    let size = config.len();
    let config = registry.put_blob(repository, config);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{size}}},"layers":[]}}"#
    );
    let size = manifest.len();
    (registry.put_manifest(repository, tag, OCI_MANIFEST, manifest), size)
}

fn blob(registry: &Registry, size: usize) -> (Descriptor, Vec<u8>) {
    let bytes: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
    let digest = registry.put_blob("a", bytes.clone());
    (Descriptor::new(MediaType::OciLayer, digest, size as u64), bytes)
}

async fn read(client: &Client, reference: &Reference, blob: &Descriptor) -> Result<Vec<u8>, Error> {
    let mut stream = client.fetch_blob(reference, blob).await?;
    let mut out = Vec::new();
    while let Some(chunk) = stream.chunk().await? {
        out.extend_from_slice(&chunk);
    }
    Ok(out)
}

#[tokio::test]
async fn resolves_tags_digests_and_platforms() {
    let registry = Registry::start().await.unwrap();
    let (arm, arm_size) = image(&registry, "a", None, "arm64");
    let (amd, amd_size) = image(&registry, "a", Some("1"), "amd64");
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[
        {{"mediaType":"{OCI_MANIFEST}","digest":"{amd}","size":{amd_size},"platform":{{"os":"unknown","architecture":"unknown"}}}},
        {{"mediaType":"{OCI_MANIFEST}","digest":"{arm}","size":{arm_size},"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}},
        {{"mediaType":"{OCI_MANIFEST}","digest":"{amd}","size":{amd_size},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
    );
    let index = registry.put_manifest("a", Some("multi"), OCI_INDEX, index);
    let client = client();
    for (what, platform, target, chosen) in [
        ("a:1".to_owned(), "linux/amd64", &amd, &amd),
        ("a:multi".to_owned(), "linux/amd64", &index, &amd),
        ("a:multi".to_owned(), "linux/arm64", &index, &arm),
        (format!("a@{arm}"), "linux/amd64", &arm, &arm),
        (format!("a:1@{index}"), "linux/amd64/v3", &index, &amd),
    ] {
        let resolved = client.resolve(&name(&registry, &what), &Platform::parse(platform).unwrap()).await.unwrap();
        assert_eq!(
            (&resolved.target.descriptor.digest, &resolved.chosen.descriptor.digest),
            (target, chosen),
            "{what}"
        );
    }
    let other = Platform::parse("linux/s390x").unwrap();
    let error = client.resolve(&name(&registry, "a:multi"), &other).await.unwrap_err();
    assert!(error.to_string().starts_with("no matching manifest for linux/s390x"), "{error}");
    assert_eq!(client.digest(&name(&registry, "a:multi")).await.unwrap().digest, index);
    assert_eq!(client.tags(&name(&registry, "a")).await.unwrap(), ["1", "multi"]);
}

#[tokio::test]
async fn failures_say_what_docker_says() {
    let registry = Registry::start().await.unwrap();
    image(&registry, "a", Some("1"), "amd64");
    let client = client();
    let host = registry.host();
    let say = async |rest: &str| client.fetch_manifest(&name(&registry, rest)).await.unwrap_err().to_string();
    assert_eq!(say("a:2").await, format!("manifest for {host}/a:2 not found: manifest unknown: manifest unknown"));
    assert_eq!(
        say("b").await,
        format!("repository {host}/b not found: name unknown: repository name not known to registry")
    );
    let nobody = Reference::parse("127.0.0.1:1/x").unwrap();
    let said = client.fetch_manifest(&nobody).await.unwrap_err().to_string();
    assert_eq!(said, r#"Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused"#);
}

#[tokio::test]
async fn basic_authentication() {
    let access = Access::Basic { username: "u".into(), password: "p".into() };
    let registry = Registry::start_with(Behaviour { access, ..Behaviour::default() }).await.unwrap();
    image(&registry, "a", Some("1"), "amd64");
    let reference = name(&registry, "a:1");
    assert!(client_as(password()).fetch_manifest(&reference).await.is_ok());
    let error = client().fetch_manifest(&reference).await.unwrap_err();
    assert!(error.to_string().ends_with("no basic auth credentials"), "{error}");
    let wrong = Credentials::Password { username: "u".into(), password: "x".into() };
    let error = client_as(wrong.clone()).fetch_manifest(&reference).await.unwrap_err();
    assert!(error.to_string().contains("unauthorized"), "{error}");
    assert!(client().log_in(&registry.host(), &password()).await.unwrap().is_none());
    let error = client().log_in(&registry.host(), &wrong).await.unwrap_err();
    assert!(error.to_string().contains("401 Unauthorized"), "{error}");
}

fn tokens(rules: TokenRules) -> Behaviour {
    let rules = TokenRules { username: "u".into(), password: "p".into(), refresh_token: "r".into(), ..rules };
    Behaviour { access: Access::Token(rules), ..Behaviour::default() }
}

#[tokio::test]
async fn token_authentication() {
    let registry = Registry::start_with(tokens(TokenRules::default())).await.unwrap();
    image(&registry, "a", Some("1"), "amd64");
    let reference = name(&registry, "a:1");
    for credentials in [password(), Credentials::IdentityToken("r".into())] {
        let client = client_as(credentials);
        client.resolve(&reference, &amd64()).await.unwrap();
        let before = registry.count("GET", "/token") + registry.count("POST", "/token");
        client.resolve(&reference, &amd64()).await.unwrap();
        assert_eq!(registry.count("GET", "/token") + registry.count("POST", "/token"), before, "the token is kept");
        registry.expire_tokens();
        client.resolve(&reference, &amd64()).await.unwrap();
    }
    let denied = client().fetch_manifest(&reference).await.unwrap_err().to_string();
    assert!(
        denied.starts_with(&format!("pull access denied for {}/a, repository does not", registry.host())),
        "{denied}"
    );
    let wrong = Credentials::Password { username: "u".into(), password: "x".into() };
    let error = client_as(wrong).fetch_manifest(&reference).await.unwrap_err();
    assert_eq!(error.to_string(), "unauthorized: incorrect username or password");
    let kept = client().log_in(&registry.host(), &password()).await.unwrap();
    assert_eq!(kept.as_deref(), Some("r"), "the identity token is offered for storing");
}

#[tokio::test]
async fn servers_of_oauth_alone_get_the_password_in_a_form() {
    let rules = TokenRules { oauth_only: true, ..TokenRules::default() };
    let registry = Registry::start_with(tokens(rules)).await.unwrap();
    image(&registry, "a", Some("1"), "amd64");
    let reference = name(&registry, "a:1");
    client_as(password()).resolve(&reference, &amd64()).await.unwrap();
    assert_eq!((registry.count("GET", "/token"), registry.count("POST", "/token")), (1, 1));
    assert!(registry.log().iter().all(|request| !request.path.contains("password")), "no secret in a query");
    let wrong = Credentials::Password { username: "u".into(), password: "x".into() };
    let error = client_as(wrong).fetch_manifest(&reference).await.unwrap_err();
    assert_eq!(error.to_string(), "unauthorized: incorrect username or password");
    let kept = client().log_in(&registry.host(), &password()).await.unwrap();
    assert_eq!(kept.as_deref(), Some("r"), "the identity token is asked for in the same way");
}

#[tokio::test]
async fn an_identity_token_that_was_exchanged_is_replaced_by_the_next() {
    let rules = TokenRules { rotating: true, ..TokenRules::default() };
    let registry = Registry::start_with(tokens(rules)).await.unwrap();
    image(&registry, "a", Some("1"), "amd64");
    let client = client_as(Credentials::IdentityToken("r0".into()));
    for _ in 0..3 {
        client.resolve(&name(&registry, "a:1"), &amd64()).await.unwrap();
        registry.expire_tokens();
    }
    assert_eq!(registry.count("POST", "/token"), 3);
    let used = client_as(Credentials::IdentityToken("r0".into()));
    let error = used.fetch_manifest(&name(&registry, "a:1")).await.unwrap_err();
    assert!(error.to_string().contains("unauthorized"), "{error}");
}

#[tokio::test]
async fn anonymous_and_one_use_tokens() {
    let rules = TokenRules { public: true, one_use: true, ..TokenRules::default() };
    let registry = Registry::start_with(tokens(rules)).await.unwrap();
    image(&registry, "a", Some("1"), "amd64");
    let reference = name(&registry, "a:1");
    let client = client();
    client.resolve(&reference, &amd64()).await.unwrap();
    let all = futures::future::join_all((0..4).map(|_| client.fetch_manifest(&reference))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
}

#[tokio::test]
async fn a_credential_never_reaches_another_host() {
    let other = Registry::start().await.unwrap();
    let access = Access::Basic { username: "u".into(), password: "p".into() };
    let redirect_blobs = Some(format!("http://{}", other.host()));
    let registry = Registry::start_with(Behaviour { access, redirect_blobs, ..Behaviour::default() }).await.unwrap();
    let (descriptor, bytes) = blob(&registry, 1000);
    other.put_blob("a", bytes.clone());
    let client = client_as(password());
    assert_eq!(read(&client, &name(&registry, "a"), &descriptor).await.unwrap(), bytes);
    let seen = other.log();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].authorization, None, "dropped on the redirect");

    // A challenge that sends the password to another host.
    let rules = TokenRules { realm: Some("http://evil.invalid/token".into()), ..TokenRules::default() };
    let registry = Registry::start_with(tokens(rules)).await.unwrap();
    let error = client.fetch_manifest(&name(&registry, "a")).await.unwrap_err();
    assert!(error.to_string().contains("refused to log in"), "{error}");

    // A challenge that comes from behind a redirect is not answered.
    let stranger = Registry::start_with(tokens(TokenRules::default())).await.unwrap();
    let registry = Registry::start().await.unwrap();
    let to = format!("http://{}/v2/a/manifests/1", stranger.host());
    registry.fault(Fault::new("GET", "/manifests/", Action::Redirect(to)));
    assert!(client.fetch_manifest(&name(&registry, "a:1")).await.is_err());
    assert_eq!(stranger.count("GET", "/token"), 0);
    assert!(stranger.log().iter().all(|r| r.authorization.is_none()));
}

#[tokio::test]
async fn redirects_are_bounded() {
    let registry = Registry::start().await.unwrap();
    let reference = name(&registry, "a:1");
    registry.fault(Fault::new("GET", "/manifests/", Action::Redirect("file:///etc/passwd".into())));
    let error = client().fetch_manifest(&reference).await.unwrap_err().to_string();
    assert!(error.contains("refused a redirect to the scheme"), "{error}");
    let around = Action::Redirect(format!("http://{}/v2/a/manifests/1", registry.host()));
    registry.fault(Fault::new("GET", "/manifests/", around).times(1000));
    let error = client().fetch_manifest(&reference).await.unwrap_err().to_string();
    assert!(error.contains("more than 10 redirects"), "{error}");
}

#[tokio::test]
async fn cut_downloads_resume_where_they_stopped() {
    let registry = Registry::start().await.unwrap();
    let (descriptor, bytes) = blob(&registry, 300_000);
    let reference = name(&registry, "a");
    registry.fault(Fault::new("GET", "/blobs/", Action::CutAfter(100_000)).times(2));
    assert_eq!(read(&client(), &reference, &descriptor).await.unwrap(), bytes);
    let ranges: Vec<_> = registry.log().into_iter().filter(|r| r.path.contains("/blobs/")).map(|r| r.range).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".into()), Some("bytes=200000-".into())]);

    registry.set(|b| b.no_ranges = true);
    registry.fault(Fault::new("GET", "/blobs/", Action::CutAfter(100_000)));
    assert_eq!(read(&client(), &reference, &descriptor).await.unwrap(), bytes, "without ranges it starts again");

    registry.clear_log();
    registry.fault(Fault::new("GET", "/blobs/", Action::CutAfter(0)).times(1000));
    let error = read(&client(), &reference, &descriptor).await.unwrap_err();
    assert!(matches!(error, Error::Interrupted { received: 0, .. }), "{error}");
    assert_eq!(registry.count("GET", "/blobs/"), 4, "it gives up");
}

#[tokio::test]
async fn busy_registries_are_asked_again_and_not_for_ever() {
    let registry = Registry::start().await.unwrap();
    image(&registry, "a", Some("1"), "amd64");
    let reference = name(&registry, "a:1");
    registry.fault(Fault::new("GET", "/manifests/", Action::Status(503, None)));
    registry.fault(Fault::new("GET", "/manifests/", Action::Status(429, Some(0))));
    client().fetch_manifest(&reference).await.unwrap();
    assert_eq!(registry.count("GET", "/manifests/"), 3);
    registry.clear_log();
    registry.fault(Fault::new("GET", "/manifests/", Action::Status(500, None)).times(1000));
    let error = client().fetch_manifest(&reference).await.unwrap_err().to_string();
    assert!(error.contains("500 Internal Server Error"), "{error}");
    assert_eq!(registry.count("GET", "/manifests/"), 4);
}

#[tokio::test]
async fn wrong_bytes_are_refused() {
    let registry = Registry::start().await.unwrap();
    let (manifest, _) = image(&registry, "a", Some("1"), "amd64");
    let (descriptor, _) = blob(&registry, 5000);
    let client = client();
    let by_digest = name(&registry, &format!("a@{manifest}"));
    for reference in [&name(&registry, "a:1"), &by_digest] {
        registry.fault(Fault::new("GET", "/manifests/", Action::OtherBytes));
        let error = client.fetch_manifest(reference).await.unwrap_err();
        assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    }
    registry.fault(Fault::new("GET", "/blobs/", Action::OtherBytes));
    let error = read(&client, &by_digest, &descriptor).await.unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    for size in [4999, 5001] {
        let lying = Descriptor::new(MediaType::OciLayer, descriptor.digest.clone(), size);
        let error = read(&client, &by_digest, &lying).await.unwrap_err();
        assert!(matches!(error, Error::WrongSize { .. }), "{error}");
    }
    registry.fault(Fault::new("GET", "/blobs/", Action::Endless));
    let error = read(&client, &by_digest, &descriptor).await.unwrap_err();
    assert!(matches!(error, Error::WrongSize { .. }), "{error}");
}

#[tokio::test]
async fn oversized_and_ambiguous_documents_are_refused() {
    let registry = Registry::start().await.unwrap();
    image(&registry, "a", Some("1"), "amd64");
    let client = client();
    let reference = name(&registry, "a:1");
    for action in [Action::Oversized(5 << 20), Action::Endless] {
        registry.fault(Fault::new("GET", "/manifests/", action));
        let error = client.fetch_manifest(&reference).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }
    let both = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[],"layers":[]}}"#);
    registry.put_manifest("a", Some("both"), OCI_INDEX, both);
    let one = r#"{"schemaVersion":1,"fsLayers":[]}"#;
    registry.put_manifest("a", Some("one"), "application/vnd.docker.distribution.manifest.v1+prettyjws", one);
    assert!(client.fetch_manifest(&name(&registry, "a:both")).await.is_err());
    let error = client.fetch_manifest(&name(&registry, "a:one")).await.unwrap_err().to_string();
    assert!(error.contains("schema 1"), "{error}");
}

#[tokio::test]
async fn mirrors_go_first_and_the_next_one_helps_out() {
    let broken = Registry::start().await.unwrap();
    broken.fault(Fault::new("GET", "/v2/library", Action::Status(404, None)).times(1000));
    let good = Registry::start().await.unwrap();
    let (digest, _) = image(&good, "library/x", Some("latest"), "amd64");
    let urls = [format!("http://{}", broken.host()), format!("http://{}/", good.host())];
    let client = Client::new(ClientOptions { mirrors: Mirrors::new(&urls, &[]).unwrap(), ..options() }).unwrap();
    let resolved = client.resolve(&Reference::parse("x").unwrap(), &amd64()).await.unwrap();
    assert_eq!(resolved.target.descriptor.digest, digest);
    assert_eq!((broken.count("GET", "library/x"), good.count("GET", "library/x/blobs")), (1, 1));
}

/// A client for which `registry.example` is at these places.
fn client_of(places: Vec<Place>) -> Client {
    let rules = Rules { places, ..Rules::default() };
    let source: RulesSource =
        Arc::new(move |registry| Ok(if registry == "registry.example" { rules.clone() } else { Rules::default() }));
    Client::new(ClientOptions { rules: source, ..options() }).unwrap()
}

fn place(registry: &Registry, offers: Offers) -> Place {
    Place {
        url: format!("http://{}/", registry.host()).parse().unwrap(),
        trust: Trust::default(),
        skip_verify: false,
        override_path: false,
        offers,
        headers: vec![("x-test".into(), "secret".into())],
    }
}

#[tokio::test]
async fn each_place_is_asked_for_what_it_offers() {
    let [by_digest, all, target] = [(); 3].map(|()| Registry::start());
    let (by_digest, all, target) = (by_digest.await.unwrap(), all.await.unwrap(), target.await.unwrap());
    for registry in [&by_digest, &all] {
        image(registry, "a", Some("1"), "amd64");
    }
    let none = Offers { pull: false, resolve: false, push: false };
    let client = client_of(vec![
        place(&by_digest, Offers { pull: true, ..none }),
        place(&all, Offers { push: false, ..Offers::default() }),
        place(&target, Offers { push: true, ..none }),
    ]);
    let reference = Reference::parse("registry.example/a:1").unwrap();
    let found = client.fetch_manifest(&reference).await.unwrap();
    assert_eq!((by_digest.log().len(), all.count("GET", "/manifests/1")), (0, 1), "a tag is not asked of the first");
    let exact = reference.without_tag().with_digest(found.descriptor.digest.clone());
    client.fetch_manifest(&exact).await.unwrap();
    assert_eq!(by_digest.log().len(), 1);
    let index = br#"{"schemaVersion":2,"manifests":[]}"#.to_vec();
    client.put_manifest(&reference, &MediaType::OciIndex, index.into()).await.unwrap();
    assert!(target.manifest("a", "1").is_some(), "what is pushed goes where it is taken");
    assert_eq!(target.count("GET", "/manifests/"), 0);
}

#[tokio::test]
async fn headers_of_a_place_go_to_no_other_host() {
    let other = Registry::start().await.unwrap();
    let redirect_blobs = Some(format!("http://{}", other.host()));
    let registry = Registry::start_with(Behaviour { redirect_blobs, ..Behaviour::default() }).await.unwrap();
    let (descriptor, bytes) = blob(&registry, 1000);
    other.put_blob("a", bytes.clone());
    let client = client_of(vec![place(&registry, Offers::default())]);
    let reference = Reference::parse("registry.example/a").unwrap();
    assert_eq!(read(&client, &reference, &descriptor).await.unwrap(), bytes);
    assert!(registry.log().iter().all(|request| request.test.as_deref() == Some("secret")), "{:?}", registry.log());
    let seen = other.log();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].test, None);
    let mut bad = place(&registry, Offers::default());
    bad.headers = vec![("x y".into(), "z".into())];
    let error = client_of(vec![bad]).fetch_manifest(&reference).await.unwrap_err();
    assert!(error.to_string().contains("\"x y\" is no header"), "{error}");
}
