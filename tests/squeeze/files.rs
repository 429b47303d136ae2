//! Indices in files.

use std::fs;

use sample_attention::Dtype;
use sample_attention::squeeze::{Error, Index, IndexOptions, Variance};

use crate::support::Text;

fn saved(index: &Index) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.safetensors");
    index.save(&path).unwrap();
    (folder, path)
}

#[test]
fn what_was_saved_is_loaded() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let text = Text::small(dtype, 64);
        for options in [
            IndexOptions::default().with_span(300).with_seed(u64::MAX),
            IndexOptions::published().with_coarse_ratio(None),
            IndexOptions::default()
                .with_variance(Variance::PerDimension)
                .with_cluster_ratio(0.1),
        ] {
            let index = text.index(options);
            let (folder, path) = saved(&index);
            let loaded = Index::load(&path).unwrap();
            assert!(loaded == index);
            assert_eq!(loaded.options(), &options);
            // Nothing lies beside it, and it can be replaced.
            index.save(&path).unwrap();
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
        // Nothing but sinks and window.
        let short = Index::build(
            &text.keys(0..50),
            &text.values(0..50),
            IndexOptions::default(),
        );
        let short = short.unwrap();
        let (_folder, path) = saved(&short);
        assert!(Index::load(&path).unwrap() == short);
    }
}

#[test]
fn a_loaded_index_takes_more_text() {
    let text = Text::small(Dtype::Bf16, 64);
    let options = IndexOptions::default();
    let mut index = Index::build(&text.keys(0..500), &text.values(0..500), options).unwrap();
    let (_folder, path) = saved(&index);
    let mut loaded = Index::load(&path).unwrap();
    for index in [&mut index, &mut loaded] {
        index
            .append(&text.keys(500..900), &text.values(500..900))
            .unwrap();
    }
    assert!(index == loaded);
}

#[test]
fn damaged_files_are_refused() {
    let text = Text::small(Dtype::Bf16, 8);
    let (_folder, path) = saved(&text.index(IndexOptions::default()));
    let whole = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize + 8;
    let body = (header..whole.len()).step_by(997).chain([whole.len() - 1]);
    for at in (0..header).step_by(3).chain(body) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x04;
        fs::write(&path, &damaged).unwrap();
        let refused = Index::load(&path).err();
        let refused = refused.unwrap_or_else(|| panic!("byte {at} is not missed"));
        assert!(
            matches!(
                refused,
                Error::Foreign { .. } | Error::Version { .. } | Error::Damaged { .. }
            ),
            "{refused}"
        );
        if at >= header {
            assert!(refused.to_string().contains("build the index again"));
        }
    }
    for len in [0, 7, 8, 100, header, header + 50, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        let refused = Index::load(&path).unwrap_err();
        assert!(matches!(refused, Error::Foreign { .. }), "{len}: {refused}");
    }
    let more = [&whole[..], &[0; 8]].concat();
    fs::write(&path, more).unwrap();
    assert!(Index::load(&path).is_err());
}

#[test]
fn foreign_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = Index::load(folder.path()).unwrap_err();
    assert!(matches!(refused, Error::Foreign { .. }), "{refused}");
    let missing = Index::load(folder.path().join("none")).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
    // A captured input, which is safetensors too.
    let text = Text::small(Dtype::Bf16, 8);
    let path = folder.path().join("capture.safetensors");
    text.capture.write(&path).unwrap();
    let refused = Index::load(&path).unwrap_err();
    assert!(matches!(refused, Error::Foreign { .. }), "{refused}");
    fs::write(&path, "no safetensors at all").unwrap();
    assert!(matches!(Index::load(&path), Err(Error::Foreign { .. })));
}

#[test]
fn a_file_that_cannot_be_written_leaves_what_was_there() {
    let text = Text::small(Dtype::Bf16, 8);
    let index = text.index(IndexOptions::default());
    let folder = tempfile::tempdir().unwrap();
    let refused = index.save(folder.path().join("no/such/folder/index"));
    assert!(matches!(refused, Err(Error::Io { .. })));
    // A folder of that name cannot be replaced by a file.
    let taken = folder.path().join("taken");
    fs::create_dir(&taken).unwrap();
    assert!(matches!(index.save(&taken), Err(Error::Io { .. })));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
