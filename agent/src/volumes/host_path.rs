//! `hostPath`: checks that the path is of the type the pod expects, or makes it.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use super::{VolumeError, io};

pub fn check(path: &Path, kind: &str) -> Result<(), VolumeError> {
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path).map_err(io("create", path))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(io("chmod", path))?;
        }
        "FileOrCreate" if !path.exists() => drop(File::create(path).map_err(io("create", path))?),
        _ => {}
    }
    let what = fs::metadata(path).map(|metadata| metadata.file_type());
    let is = |test: fn(&fs::FileType) -> bool| what.as_ref().is_ok_and(test);
    let (fits, name) = match kind {
        "Directory" | "DirectoryOrCreate" => (is(fs::FileType::is_dir), "directory"),
        "File" | "FileOrCreate" => (is(fs::FileType::is_file), "file"),
        "Socket" => (is(FileTypeExt::is_socket), "socket file"),
        "CharDevice" => (is(FileTypeExt::is_char_device), "character device"),
        "BlockDevice" => (is(FileTypeExt::is_block_device), "block device"),
        _ => (true, ""),
    };
    if fits { Ok(()) } else { Err(VolumeError::HostPathType(path.display().to_string(), name)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_another_type_is_refused_and_a_missing_one_made_where_asked() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f");
        assert!(check(&file, "File").is_err());
        check(&file, "FileOrCreate").unwrap();
        check(&file, "File").unwrap();
        let error = check(&file, "Directory").unwrap_err().to_string();
        assert!(error.ends_with("is not a directory"), "{error}");
        check(&directory.path().join("a/b"), "DirectoryOrCreate").unwrap();
        check(&directory.path().join("nothing"), "").unwrap();
    }
}
