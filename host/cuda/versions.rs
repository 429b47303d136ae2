//! Which driver takes which PTX.

/// The first release that takes a version of PTX: PTX, CUDA, and the release of that CUDA's driver on Linux, from the table
/// "PTX Release History" of NVIDIA's PTX ISA and the release notes of the toolkits.
struct Row {
    ptx: [u32; 2],
    cuda: [u32; 2],
    driver_release: u32,
}

const fn row(ptx: [u32; 2], cuda: [u32; 2], driver_release: u32) -> Row {
    Row {
        ptx,
        cuda,
        driver_release,
    }
}

const ROWS: &[Row] = &[
    row([7, 0], [11, 0], 450),
    row([7, 1], [11, 1], 455),
    row([7, 2], [11, 2], 460),
    row([7, 3], [11, 3], 465),
    row([7, 4], [11, 4], 470),
    row([7, 5], [11, 5], 495),
    row([7, 6], [11, 6], 510),
    row([7, 7], [11, 7], 515),
    row([7, 8], [11, 8], 520),
    row([8, 0], [12, 0], 525),
    row([8, 1], [12, 1], 530),
    row([8, 2], [12, 2], 535),
    row([8, 3], [12, 3], 545),
    row([8, 4], [12, 4], 550),
    row([8, 5], [12, 5], 555),
    row([8, 6], [12, 7], 565),
    row([8, 7], [12, 8], 570),
    row([8, 8], [12, 9], 575),
    row([9, 0], [13, 0], 580),
];

/// The first CUDA version and driver release that take `ptx`; of a version after the table, those of its last row.
pub(super) fn needed(ptx: [u32; 2]) -> ([u32; 2], u32) {
    let last = ROWS.last().expect("the table has rows");
    let row = ROWS.iter().find(|row| row.ptx >= ptx).unwrap_or(last);
    (row.cuda, row.driver_release)
}

/// The number of a text's `.version` line.
pub(super) fn of_text(ptx: &str) -> Option<[u32; 2]> {
    let number = ptx
        .lines()
        .find_map(|line| line.trim().strip_prefix(".version"))?;
    let (major, minor) = number.trim().split_once('.')?;
    Some([major.parse().ok()?, minor.parse().ok()?])
}

/// Major and minor of what `cuDriverGetVersion` gives.
pub(super) fn of_driver(version: u32) -> [u32; 2] {
    [version / 1000, version % 1000 / 10]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_ascend() {
        assert!(ROWS.is_sorted_by(|a, b| {
            a.ptx < b.ptx && a.cuda < b.cuda && a.driver_release < b.driver_release
        }));
    }

    #[test]
    fn the_driver_of_a_ptx_version_is_the_first_that_takes_it() {
        assert_eq!(needed([8, 3]), ([12, 3], 545));
        assert_eq!(needed([7, 0]), ([11, 0], 450));
        assert_eq!(needed([6, 3]), ([11, 0], 450));
        assert_eq!(needed([99, 0]), ([13, 0], 580));
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(
            of_text("// .version 1\n\n.version 8.3\n.target sm_90a\n"),
            Some([8, 3])
        );
        assert_eq!(of_text(".target sm_80\n"), None);
        assert_eq!(of_driver(12_030), [12, 3]);
        assert_eq!(of_driver(13_000), [13, 0]);
    }

    #[cfg(feature = "ptx")]
    #[test]
    fn the_shipped_texts_are_of_versions_that_the_table_has() {
        for text in [crate::ptx::SM_80, crate::ptx::SM_90A] {
            let version = of_text(text).expect("a .version line");
            assert!(ROWS.iter().any(|row| row.ptx == version), "{version:?}");
        }
    }
}
