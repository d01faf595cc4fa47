//! Extended attributes that belong to a file's content as images know it.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Name and value, sorted by name.
pub type Xattrs = Vec<(CString, Vec<u8>)>;

/// Whether an attribute travels with a file: the user's own, file capabilities and access lists. The overlay driver's
/// marks never do, in neither spelling.
pub fn travels(name: &CStr) -> bool {
    let name = name.to_bytes();
    if name.starts_with(b"user.overlay.") {
        return false;
    }
    name.starts_with(b"user.")
        || matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
}

/// The travelling attributes of an open file or directory.
///
/// # Errors
/// As `flistxattr`; a file system without attributes has none.
pub fn read(fd: impl AsFd) -> rustix::io::Result<Xattrs> {
    let fd = fd.as_fd();
    let mut names = [0u8; 1024];
    let listed: Vec<u8> = match rustix::fs::flistxattr(fd, &mut names) {
        Ok(0) | Err(Errno::NOTSUP | Errno::BADF) => return Ok(Vec::new()),
        Ok(n) => names[..n].to_vec(),
        Err(Errno::RANGE) => {
            let mut large = vec![0u8; 64 << 10];
            let n = rustix::fs::flistxattr(fd, &mut large)?;
            large.truncate(n);
            large
        }
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for name in listed.split_inclusive(|b| *b == 0).filter_map(|n| CStr::from_bytes_with_nul(n).ok()) {
        if !travels(name) {
            continue;
        }
        let mut value = vec![0u8; 64 << 10];
        match rustix::fs::fgetxattr(fd, name, &mut value) {
            Ok(n) => {
                value.truncate(n);
                found.push((name.to_owned(), value));
            }
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    found.sort();
    Ok(found)
}

/// Sets attributes on an open file or directory.
///
/// # Errors
/// As `fsetxattr`.
pub fn write(fd: impl AsFd, xattrs: &Xattrs) -> rustix::io::Result<()> {
    let fd = fd.as_fd();
    xattrs.iter().try_for_each(|(name, value)| rustix::fs::fsetxattr(fd, name.as_c_str(), value, XattrFlags::empty()))
}
