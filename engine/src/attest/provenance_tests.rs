use super::*;

fn evidence() -> Evidence {
    let asked = Asked {
        vcs: [("revision".to_owned(), "0123".to_owned())].into(),
        arguments: [("build-arg:A", "https://u:hunter2@h/x"), ("target", "t")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        path: "Dockerfile".to_owned(),
    };
    let graph = Graph {
        steps: vec![json!({"id": "step0", "op": {"Op": {}}})],
        result: Some("step0:0".to_owned()),
        secrets: [("tok".to_owned(), false), ("maybe".to_owned(), true)].into(),
        contexts: vec!["context".to_owned()],
        uses_network: true,
        ..Graph::default()
    };
    let material = Material {
        uri: "pkg:docker/busybox@latest?platform=linux%2Famd64".to_owned(),
        digest: ("sha256".to_owned(), "00".to_owned()),
    };
    let dockerfile = SourceText { name: "Dockerfile".to_owned(), text: "ADD https://u:hunter2@h/f /\n".to_owned() };
    let run = Some(("b1".to_owned(), SystemTime::UNIX_EPOCH));
    Evidence { asked, context: None, materials: vec![material], dockerfile, graph, run }
}

fn layers() -> Vec<Descriptor> {
    vec![Descriptor::new("x/y".into(), rbuild_oci::Digest::sha256_of(b"l"), 1)]
}

fn options(mode: ProvenanceMode, version: SlsaVersion) -> ProvenanceOptions {
    ProvenanceOptions { mode, version, ..ProvenanceOptions::default() }
}

#[test]
fn the_least_says_no_value_and_no_time() {
    let evidence = evidence();
    for version in [SlsaVersion::V1, SlsaVersion::V02] {
        let said = evidence.predicate(&options(ProvenanceMode::Min, version), &layers());
        let text = said.to_string();
        for hidden in ["hunter2", "build-arg", "tok", "1970", "invocation\":\"", "step0", "\"data\""] {
            assert!(!text.contains(hidden), "{hidden} in {text}");
        }
        assert!(text.contains("pkg:docker/busybox") && text.contains("\"target\":\"t\""), "{text}");
        assert_eq!(said, evidence.predicate(&options(ProvenanceMode::Min, version), &layers()));
    }
}

#[test]
fn the_most_is_in_the_shape_of_its_version() {
    let evidence = evidence();
    let v1 = evidence.predicate(&options(ProvenanceMode::Max, SlsaVersion::V1), &layers());
    let definition = &v1["buildDefinition"];
    assert_eq!(definition["externalParameters"]["request"]["args"]["build-arg:A"], "https://h/x");
    let secrets = &definition["externalParameters"]["request"]["secrets"];
    assert_eq!(*secrets, json!([{"id": "maybe", "optional": true}, {"id": "tok"}]));
    assert_eq!(definition["internalParameters"]["buildConfig"]["llbDefinition"][0]["id"], "step0");
    assert_eq!(v1["runDetails"]["metadata"]["startedOn"], "1970-01-01T00:00:00Z");
    assert_eq!(v1["runDetails"]["metadata"]["buildkit_completeness"]["request"], true);
    assert_eq!(v1["runDetails"]["metadata"]["buildkit_metadata"]["vcs"]["revision"], "0123");
    let layer = &v1["runDetails"]["metadata"]["buildkit_metadata"]["layers"]["step0:0"][0][0];
    assert_eq!(layer["size"], 1);
    let data = &v1["runDetails"]["metadata"]["buildkit_metadata"]["source"]["infos"][0]["data"];
    assert_eq!(STANDARD.decode(data.as_str().unwrap()).unwrap(), b"ADD https://h/f /\n");

    let v02 = evidence.predicate(&options(ProvenanceMode::Max, SlsaVersion::V02), &layers());
    assert_eq!(v02["buildType"], BUILD_TYPE_V02);
    assert_eq!(v02["invocation"]["configSource"]["entryPoint"], "Dockerfile");
    assert_eq!(v02["buildConfig"]["llbDefinition"][0]["id"], "step0");
    assert_eq!(v02["metadata"]["buildInvocationID"], "b1");
    assert_eq!(v02["metadata"]["completeness"]["materials"], false);
    assert!(!v02.to_string().contains("hunter2"));
}

#[test]
fn a_promise_to_be_reproducible_leaves_the_time_out() {
    let reproducible = ProvenanceOptions { reproducible: true, ..options(ProvenanceMode::Max, SlsaVersion::V1) };
    let said = evidence().predicate(&reproducible, &layers());
    assert_eq!(said["runDetails"]["metadata"]["startedOn"], Value::Null);
    assert_eq!(said["runDetails"]["metadata"]["buildkit_reproducible"], true);
}

#[test]
fn credentials_go_wherever_they_stand() {
    for (text, want) in [
        ("RUN curl https://u:p@h/x && git clone 'https://t@h/y'", "RUN curl https://h/x && git clone 'https://h/y'"),
        ("ssh://git@h/x", "ssh://git@h/x"),
        ("é://a@b ://", "é://b ://"),
        ("A=https://u:p@h", "A=https://h"),
        ("no address", "no address"),
    ] {
        assert_eq!(without_credentials(text), want, "{text}");
    }
}
