//! Which file stands above which.

use std::path::Path;

/// The floors of each crate, the lowest first. A floor is one or more rooms; a room is paths (files, or folders that end in `/`)
/// whose files may use each other as they like, as long as they do not go round in circles. A file uses its own room and the
/// floors below, not another room of its floor, nor anything above. Files that stand in no room are not judged: they are the
/// crates' roots.
const FLOORS: &[&[&[&[&str]]]] = &[
];

/// What is wrong with `from` using `to`, if anything is.
pub fn offence(from: &Path, to: &Path) -> Option<String> {
    let (house, floor, room) = place(from)?;
    let (house_below, floor_below, room_below) = place(to)?;
    if house != house_below {
        return None;
    }
    let name = |floor: usize, room: usize| FLOORS[house][floor][room].join(", ");
    let (here, there) = (name(floor, room), name(floor_below, room_below));
    if floor_below > floor {
        return Some(format!("upwards: {here} is below {there}"));
    }
    if floor == floor_below && room != room_below {
        return Some(format!("sideways: {here} is beside {there}"));
    }
    None
}

/// House, floor and room of a file.
fn place(file: &Path) -> Option<(usize, usize, usize)> {
    let file = file.to_str()?;
    let stands_in = |path: &str| match path.strip_suffix('/') {
        Some(_) => file.starts_with(path),
        None => file == path,
    };
    for (house, floors) in FLOORS.iter().enumerate() {
        for (floor, rooms) in floors.iter().enumerate() {
            let room = rooms.iter().position(|room| room.iter().any(|path| stands_in(path)));
            if let Some(room) = room {
                return Some((house, floor, room));
            }
        }
    }
    None
}

/// Whether a file of the device crate may ask for the target; other crates may always. (The crate's root has no `std` on a GPU.)
pub fn may_name_the_target(file: &Path) -> bool {
    !file.starts_with("device/src")
        || file.starts_with("device/src/gpu")
        || file == Path::new("device/src/lib.rs")
}
