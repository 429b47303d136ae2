//! Which file stands above which.

use std::path::Path;

/// Tables of floors, the lowest first. A floor is one or more rooms; a room is paths (files, or folders that end in `/`)
/// whose files may use each other as they like, as long as they do not go round in circles. A file uses its own room and the
/// floors below, not another room of its floor, nor anything above. Files that stand in no room of a table are not
/// judged by it.
const FLOORS: &[&[&[&[&str]]]] = &[
    // host: what a call can get wrong → what to compute → what comes back → the plan → the backends → the driver.
    &[
        &[&[
            "host/dtype.rs",
            "host/shape.rs",
            "host/error/",
            "host/whole_file.rs",
        ]],
        &[&[
            "host/problem.rs",
            "host/policy.rs",
            "host/head_policy.rs",
            "host/tensor.rs",
            "host/geometry.rs",
            "host/varlen/",
        ]],
        &[
            &[
                "host/selection/",
                "host/stage.rs",
                "host/report.rs",
                "host/progress.rs",
            ],
            &["host/profile/"],
            &["host/calibrate/"],
        ],
        &[&["host/plan.rs"]],
        &[&["host/cpu/"], &["host/pipeline/"]],
        &[
            &["host/emulator/"],
            &["host/cuda/"],
            &["host/head_policies.rs"],
            &["host/squeeze/"],
        ],
    ],
    // device: the hardware → the words of a launch → tiles → stages. Reduction takes what sampling left, and top-k what reduction
    // did, each in the other's layout; few queries take the parameters of attention.
    &[
        &[&["device/src/gpu/"]],
        &[&[
            "device/src/block.rs",
            "device/src/abi/",
            "device/src/params.rs",
            "device/src/launch.rs",
        ]],
        &[&["device/src/tile/"]],
        &[&["device/src/sampling/"], &["device/src/sparse_flash/"]],
        &[&["device/src/reduction/"], &["device/src/decode/"]],
        &[&["device/src/top_k/"]],
    ],
    // candle's ops: what a call says → the devices, which keep their own in the workspace → the op that chooses one → the functions.
    &[
        &[&[
            "candle/src/policies.rs",
            "candle/src/view.rs",
            "candle/src/windows.rs",
        ]],
        &[&["candle/src/call.rs"]],
        &[&["candle/src/cpu/"], &["candle/src/cuda/"]],
        &[&["candle/src/op.rs"]],
        &[&["candle/src/flash.rs", "candle/src/sample.rs"]],
    ],
    // The emulator: what its parts share → the instructions, and whole launches.
    &[
        &[&["device/src/gpu/emu/state/"]],
        &[&["device/src/gpu/emu/"]],
    ],
];

/// What is wrong with `from` using `to`, if anything is.
pub fn offence(from: &Path, to: &Path) -> Option<String> {
    FLOORS.iter().find_map(|floors| {
        let (floor, room) = place(floors, from)?;
        let (floor_used, room_used) = place(floors, to)?;
        let (here, there) = (
            floors[floor][room].join(", "),
            floors[floor_used][room_used].join(", "),
        );
        if floor_used > floor {
            return Some(format!("upwards: {here} is below {there}"));
        }
        (floor == floor_used && room != room_used)
            .then(|| format!("sideways: {here} is beside {there}"))
    })
}

/// Floor and room of a file: the first that holds it.
fn place(floors: &[&[&[&str]]], file: &Path) -> Option<(usize, usize)> {
    let file = file.to_str()?;
    let holds = |path: &str| match path.strip_suffix('/') {
        Some(_) => file.starts_with(path),
        None => file == path,
    };
    floors.iter().enumerate().find_map(|(floor, rooms)| {
        let room = rooms
            .iter()
            .position(|room| room.iter().any(|path| holds(path)))?;
        Some((floor, room))
    })
}

/// Whether a file of the device crate may ask for the target; other crates may always. (The crate's root has no `std` on a GPU.)
pub fn may_name_the_target(file: &Path) -> bool {
    !file.starts_with("device/src")
        || file.starts_with("device/src/gpu")
        || file == Path::new("device/src/lib.rs")
}
