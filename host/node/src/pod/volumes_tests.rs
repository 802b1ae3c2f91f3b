use serde_json::json;

use super::{
    super::env::tests::{Fixed, place},
    *,
};

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "default", "labels": {"app": "x"}},
        "spec": {
            "containers": [{"name": "c", "volumeMounts": [
                {"name": "conf", "mountPath": "/conf"},
                {"name": "tmp", "mountPath": "/tmp", "subPath": "a/b"},
            ]}],
            "volumes": [
                {"name": "conf", "configMap": {"name": "settings", "items": [{"key": "color", "path": "deep/color"}]}},
                {"name": "tmp", "emptyDir": {}},
                {"name": "all", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "sa/token", "expirationSeconds": 3607}},
                    {"secret": {"name": "keys"}},
                    {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                ]}},
            ],
        },
    }))
    .unwrap()
}

#[tokio::test]
async fn volumes_hold_what_they_name_and_can_be_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let pod = pod();
    for _ in 0..2 {
        prepare(&pod, dir.path(), &place(), &Fixed).await.unwrap();
    }
    let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).unwrap();
    assert_eq!(read("conf/deep/color"), "blue");
    assert_eq!(read("all/labels"), "app=\"x\"");
    assert!(read("all/sa/token") == "token for api 3607");
    let mounts = mounts(&pod, &pod.spec.as_ref().unwrap().containers[0], dir.path(), &[], false).unwrap();
    let shown: Vec<_> = mounts.iter().map(|m| (m.guest.as_str(), m.read_only)).collect();
    assert_eq!(shown, [("/conf", true), ("/tmp", false)]);
    assert!(mounts[1].host.is_dir());
}

#[tokio::test]
async fn content_is_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = |text: &str| (text.as_bytes().to_vec(), 0o400);
    let volume = dir.path().join("v");
    write_files(&volume, &[("a".into(), file("1")), ("b/c".into(), file("2"))].into(), None).unwrap();
    write_files(&volume, &[("a".into(), file("3"))].into(), None).unwrap();
    assert_eq!(std::fs::read(volume.join("a")).unwrap(), b"3");
    assert!(!volume.join("b").exists());
    assert_eq!(std::fs::read_dir(&volume).unwrap().count(), 3);
    assert!(write_files(&volume, &[("../x".into(), file("4"))].into(), None).is_err());
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut pod = pod();
    let volumes = pod.spec.as_mut().unwrap().volumes.as_mut().unwrap();
    volumes[0].config_map.as_mut().unwrap().name = "no".into();
    let error = prepare(&pod, dir.path(), &place(), &Fixed).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "MountVolume.SetUp failed for volume \"conf\" : configmap \"no\" not found"
    );
}
