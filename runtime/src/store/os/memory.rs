//! How much memory is available, and how much of it this process holds.

/// Bytes that this process can still allocate without forcing other processes out: the system's figure for
/// available memory, or less if a control group limits it. `None` if the system has no such figure.
pub fn available_bytes() -> Option<u64> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let info = std::fs::read_to_string("/proc/meminfo").ok()?;
        let free = kilobytes(&info, "MemAvailable:")?;
        Some(cgroup_room().map_or(free, |room| room.min(free)))
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    None
}

/// Anonymous memory of this process, in bytes. `None` if the system has no such figure.
pub fn anonymous_bytes() -> Option<u64> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, "RssAnon:")
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    None
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Memory left in the control groups of this process: the tightest limit among them and their parents,
/// versions 1 and 2. Page cache does not count as used, because the kernel reclaims it.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn cgroup_room() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut room: Option<u64> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, limit, used) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max", "anon "),
            c if c.split(',').any(|c| c == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "total_rss ")
            }
            _ => continue,
        };
        // Up to the root. A container has its own root at the mount point, whatever its path.
        for group in std::path::Path::new(path).ancestors() {
            let folder = std::path::Path::new(root).join(group.strip_prefix("/").unwrap_or(group));
            let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
            // "max", or a number beyond any memory size: no limit.
            let Some(limit) = read(limit).and_then(|l| l.trim().parse::<u64>().ok()) else { continue };
            let stat = read("memory.stat").unwrap_or_default();
            let used: u64 = stat
                .lines()
                .find_map(|l| l.strip_prefix(used))
                .and_then(|n| n.trim().parse().ok())
                .unwrap_or(0);
            let left = limit.saturating_sub(used);
            room = Some(room.map_or(left, |r| r.min(left)));
        }
    }
    room
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_what_there_is() {
        let available = available_bytes().unwrap();
        assert!(available > 1 << 20);
    }

    #[test]
    fn a_line_of_kilobytes_is_read() {
        assert_eq!(kilobytes("A: 1 kB\nRssAnon:\t  12 kB\n", "RssAnon:"), Some(12 << 10));
        assert_eq!(kilobytes("", "RssAnon:"), None);
    }
}
