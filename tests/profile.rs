//! Profiles: what is written is what is read, and what is wrong is named.

use proptest::prelude::*;
use sample_attention::profile::{Calibrated, Profile, ProfileError, ProfilePlace};
use sample_attention::{Budget, Dtype, Fallback, HeadPlan, HeadPolicy, Policy, Problem, Window};

fn local(tokens: usize) -> HeadPolicy {
    HeadPolicy::Local {
        window: Window::Tokens(tokens),
        sinks: 16,
    }
}

fn profile() -> Profile {
    let of = |budget| HeadPolicy::Selected(Policy::of(budget));
    let doubling = Policy::of(Budget::Blocks).with_stride_doubles_from(8192);
    let ratio = Policy::default()
        .with_window(Window::Ratio(0.1))
        .with_tail(256, 2);
    let heads = vec![
        vec![HeadPolicy::Dense, local(256), of(Budget::Rows)],
        vec![of(Budget::Blocks), of(Budget::Residual), of(Budget::Paper)],
        vec![
            HeadPolicy::Selected(doubling.with_fallback(Fallback::Never)),
            HeadPolicy::Selected(ratio.with_row_offset(3)),
            local(usize::MAX),
        ],
    ];
    let calibration = Calibrated::new("some \"text\"\n\u{2028}", vec![8192, 32768], 0.1 + 0.2);
    let profile = Profile::new("a model", heads).unwrap();
    profile.with_calibration(calibration).unwrap()
}

fn refused(from: &str, to: &str) -> ProfileError {
    let text = profile().to_json();
    assert!(text.contains(from), "{from} in {text}");
    Profile::from_json(&text.replacen(from, to, 1)).unwrap_err()
}

#[test]
fn what_is_written_is_what_is_read() {
    let text = profile().to_json();
    let read = Profile::from_json(&text).unwrap();
    assert_eq!(read, profile());
    assert_eq!(read.to_json(), text);
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(format!("profile-{}.json", std::process::id()));
    profile().write(&path).unwrap();
    assert_eq!(Profile::read(&path).unwrap(), profile());
    // Over a file that is there.
    profile().write(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(
        Profile::read(&path),
        Err(ProfileError::File { .. })
    ));
    assert!(matches!(
        profile().write(folder.join("no folder/p.json")),
        Err(ProfileError::File { .. })
    ));
}

#[test]
fn fields_that_a_budget_does_not_use_are_not_kept() {
    let policy = Policy::of(Budget::Residual)
        .with_tail(9, 3)
        .with_row_offset(1);
    let policy = policy.with_stride_doubles_from(256);
    let profile = Profile::new("", vec![vec![HeadPolicy::Selected(policy)]]).unwrap();
    let plain = HeadPolicy::Selected(Policy::of(Budget::Residual));
    assert_eq!(profile.layer(0).unwrap(), [plain]);
    assert_eq!(Profile::from_json(&profile.to_json()).unwrap(), profile);
}

fn any_policy() -> impl Strategy<Value = HeadPolicy> {
    let window = prop_oneof![
        (1usize..100_000).prop_map(Window::Tokens),
        (f32::MIN_POSITIVE..=1.0).prop_map(Window::Ratio)
    ];
    let budget = prop_oneof![
        Just(Budget::Rows),
        Just(Budget::Blocks),
        Just(Budget::Residual),
        Just(Budget::Paper)
    ];
    let coverage = f32::MIN_POSITIVE..=1.0;
    let numbers = (1usize..=1 << 40, any::<usize>(), any::<usize>(), 1usize..=9);
    let parts = (
        budget,
        coverage,
        window,
        numbers,
        any::<usize>(),
        any::<bool>(),
        0..6,
    );
    parts.prop_map(
        |(budget, coverage, window, (stride, offset, tail, tail_stride), sinks, auto, kind)| {
            match kind {
                0 => HeadPolicy::Dense,
                1 => HeadPolicy::Local { window, sinks },
                _ => HeadPolicy::Selected(
                    Policy::of(budget)
                        .with_coverage(coverage)
                        .with_row_stride(stride)
                        .with_row_offset(offset)
                        .with_tail(tail, tail_stride)
                        .with_stride_doubles_from(offset.max(1))
                        .with_window(window)
                        .with_sinks(sinks)
                        .with_fallback(if auto {
                            Fallback::Auto
                        } else {
                            Fallback::Never
                        }),
                ),
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_profile_is_read_back_bit_for_bit(
        heads in prop::collection::vec(prop::collection::vec(any_policy(), 2), 1..4),
        model in ".*",
        price in 0f64..1e300,
    ) {
        let calibration = Calibrated::new(model.clone(), vec![usize::MAX, 0], price);
        let profile = Profile::new(model, heads).unwrap().with_calibration(calibration).unwrap();
        prop_assert_eq!(Profile::from_json(&profile.to_json()).unwrap(), profile);
    }

    #[test]
    fn damaged_profiles_give_errors_and_no_panics(cut in 0usize..2000, at in 0usize..2000, byte in any::<u8>()) {
        let text = profile().to_json();
        let truncated = &text.as_bytes()[..cut.min(text.len() - 2)];
        let truncated = String::from_utf8_lossy(truncated);
        let is_json_error = matches!(Profile::from_json(&truncated), Err(ProfileError::Json { .. }));
        prop_assert!(is_json_error);
        let mut bytes = text.clone().into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        // Either it still means a profile, or it is refused.
        if let Ok(read) = Profile::from_json(&String::from_utf8_lossy(&bytes)) {
            prop_assert_eq!(Profile::from_json(&read.to_json()).unwrap(), read);
        }
    }
}

#[test]
fn wrong_numbers_of_layers_and_heads_are_named() {
    let error = refused("\"layers\": 3", "\"layers\": 4");
    assert_eq!(
        error,
        ProfileError::LayerCount {
            given: 3,
            expected: 4
        }
    );
    let error = refused("\"q_heads\": 3", "\"q_heads\": 4");
    let of_first = ProfileError::HeadCount {
        layer: 0,
        given: 3,
        expected: 4,
    };
    assert_eq!(error, of_first);
    for (from, field) in [("\"layers\": 3", "layers"), ("\"q_heads\": 3", "q_heads")] {
        for number in [
            "0",
            "-1",
            "3.5",
            "1e400",
            "true",
            "\"3\"",
            "99999999999999999999999",
        ] {
            let text = profile().to_json();
            let error = Profile::from_json(&text.replace(from, &format!("\"{field}\": {number}")));
            let said = error.unwrap_err().to_string();
            // JSON has no number of that size.
            assert!(
                said.contains(field) || number == "1e400",
                "{number}: {said}"
            );
        }
    }
    let heads = vec![vec![HeadPolicy::Dense; 2], vec![HeadPolicy::Dense]];
    let error = Profile::new("", heads).unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer 1 has 1 heads, but `q_heads` says 2: give each query head an entry"
    );
    assert!(Profile::new("", vec![]).is_err() && Profile::new("", vec![vec![]]).is_err());
}

#[test]
fn what_is_wrong_with_a_head_is_named_with_the_head_and_the_remedy() {
    let rows = "\"coverage\": 0.73, \"row_stride\": 8, \"window\": 128, \"sinks\": 16";
    for (from, to, said) in [
        (
            "\"dense\"",
            "\"sparse\"",
            "layer 0, head 0 has the unknown kind `sparse`: use dense",
        ),
        (
            "\"kind\": \"dense\"",
            "\"knd\": \"dense\"",
            "layer 0, head 0 has no field `kind`",
        ),
        (
            "\"dense\"",
            "\"dense\", \"sinks\": 3",
            "layer 0, head 0 has an unknown field `sinks`: remove it",
        ),
        (
            "\"dense\"",
            "\"dense\", \"kind\": \"dense\"",
            "layer 0, head 0 has the field `kind` twice",
        ),
        (
            "\"window\": 256",
            "\"window\": -1",
            "layer 0, head 1: `window` must be a whole number",
        ),
        (
            "\"window\": 256",
            "\"window\": 0",
            "layer 0, head 1: the window has 0 tokens",
        ),
        (
            "\"window\": 256",
            "\"window_ratio\": 1.5",
            "layer 0, head 1: the window ratio is 1.5",
        ),
        (
            "\"window\": 256",
            "\"window\": 9, \"window_ratio\": 0.5",
            "layer 0, head 1: `window` must be alone",
        ),
        (
            "\"coverage\": 0.73",
            "\"coverage\": NaN",
            "not a JSON document",
        ),
        (
            "\"coverage\": 0.73",
            "\"coverage\": null",
            "layer 0, head 2: `coverage` must be a number",
        ),
        (
            "\"coverage\": 0.73",
            "\"coverage\": 1e300",
            "layer 0, head 2: `coverage` must be a number that f32 holds",
        ),
        (
            "\"coverage\": 0.73",
            "\"coverage\": 1.01",
            "layer 0, head 2: coverage is 1.01",
        ),
        (
            "\"row_stride\": 8",
            "\"row_stride\": 0",
            "layer 0, head 2: row_stride is 0",
        ),
        (
            "\"row_stride\": 8",
            "\"row_stride\": 8.5",
            "layer 0, head 2: `row_stride` must be",
        ),
        (
            rows,
            &format!("{rows}, \"tail_stride\": 0"),
            "layer 0, head 2: tail_stride is 0",
        ),
        (
            rows,
            &format!("{rows}, \"stride_doubles_from\": 9"),
            "layer 0, head 2 has an unknown field `stride_doubles_from`",
        ),
        (
            rows,
            &format!("{rows}, \"fallback\": \"maybe\""),
            "layer 0, head 2: `fallback` must be \"auto\" or \"never\"",
        ),
    ] {
        let error = refused(from, to).to_string();
        assert!(error.starts_with(said), "{from} → {to}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn what_is_wrong_with_the_profile_itself_is_named() {
    for (from, to, said) in [
        (
            "sample-attention profile",
            "something else",
            "not a profile: `format`",
        ),
        (
            "\"version\": 1",
            "\"version\": 2",
            "the profile has version 2, and this library reads version 1: use a newer",
        ),
        (
            "\"version\": 1",
            "\"version\": \"1\"",
            "the profile: `version` must be a whole number",
        ),
        (
            "\"model\": \"a model\",",
            "",
            "the profile has no field `model`",
        ),
        (
            "\"model\"",
            "\"other\": 1, \"model\"",
            "the profile has an unknown field `other`",
        ),
        (
            "\"layers\": 3,",
            "\"layers\": 3, \"layers\": 3,",
            "the profile has the field `layers` twice",
        ),
        (
            "\"price\": 0.30000000000000004",
            "\"price\": -1",
            "`calibration`: `price` must be a finite number from 0",
        ),
        (
            "\"lengths\": [8192,",
            "\"lengths\": [-1,",
            "`calibration`: `lengths` must be",
        ),
    ] {
        let error = refused(from, to).to_string();
        assert!(error.starts_with(said), "{from} → {to}: {error}");
    }
    for text in ["", "7", "[]", "{}", "null", "{\"format\": 1}", "\u{feff}{}"] {
        assert!(Profile::from_json(text).is_err(), "{text}");
    }
    let price = Calibrated::new("", vec![], f64::NAN);
    let error = profile().with_calibration(price).unwrap_err();
    assert!(matches!(
        error,
        ProfileError::Value {
            place: ProfilePlace::Calibration,
            ..
        }
    ));
}

#[test]
fn hostile_files_end_in_errors() {
    let deep = |open: &str, close: &str| open.repeat(100_000) + &close.repeat(100_000);
    for text in [deep("[", "]"), deep("{\"a\":", "}"), deep("[", "")] {
        assert!(matches!(
            Profile::from_json(&text),
            Err(ProfileError::Json { .. })
        ));
    }
    // Inside of a profile too.
    let error = refused("{\"kind\": \"dense\"}", &deep("[", "]"));
    assert!(matches!(error, ProfileError::Json { .. }));
    let error = refused("{\"kind\": \"dense\"}", "[[[]]]");
    assert!(
        error
            .to_string()
            .starts_with("layer 0, head 0: `heads` must be an object")
    );
    // Counts that no list has take no memory.
    let error = refused("\"layers\": 3", "\"layers\": 18446744073709551615");
    assert!(matches!(error, ProfileError::LayerCount { given: 3, .. }));
    let long = "x".repeat(1 << 20);
    let error = refused(
        "{\"kind\": \"dense\"}",
        &format!("{{\"kind\": \"dense\", \"{long}\": 1}}"),
    );
    assert!(error.to_string().len() < 300);
    let error = refused("\"dense\"", &format!("\"{long}\""));
    assert!(error.to_string().len() < 300, "{}", error.to_string().len());
}

#[test]
fn a_layer_feeds_a_plan_and_another_models_is_refused() {
    let profile = profile();
    let problem = Problem::causal(300, 16, Dtype::F32).with_heads(3, 1);
    let plan = HeadPlan::new(problem, profile.layer_of(1, 3).unwrap()).unwrap();
    assert_eq!(plan.policies(), profile.layer(1).unwrap());
    assert_eq!(
        profile.layer(3),
        Err(ProfileError::NoLayer {
            layer: 3,
            layers: 3
        })
    );
    let error = profile.layer_of(1, 4).unwrap_err();
    assert_eq!(
        error,
        ProfileError::QHeads {
            profile: 3,
            model: 4
        }
    );
}
