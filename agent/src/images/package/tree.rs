//! A package's files and folders, in memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::path::{MAX_DEPTH, MAX_PATH, Name, check_target};
use super::refused::{PathFault, UnpackError, readable};
use super::spool::Content;

/// How many links one path may go through: the kernel's own limit.
const MAX_LINKS: usize = 40;
/// How many names may be looked at for one path, those of links' targets included.
const MAX_STEPS: usize = 256;

/// What an entry's path may go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Folders only.
    Refused,
    /// Symbolic links, too, which lead where they would if the tree was the root file system:
    /// container layers rely on that, for example on `lib -> usr/lib` of a layer below.
    FollowedInside,
}

/// What is at a path.
#[derive(Debug)]
pub enum Node {
    /// A folder.
    Folder(Folder),
    /// A file.
    File(Content),
    /// A symbolic link.
    Link(Vec<u8>),
}

/// What is in a folder, by name.
#[derive(Debug, Default)]
pub struct Folder(BTreeMap<Name, Entry>);

#[derive(Debug)]
struct Entry {
    node: Node,
    /// The layer that put it there last.
    layer: usize,
}

/// Files and folders. Entries come layer by layer; within one layer, nothing is there twice.
#[derive(Debug)]
pub struct Tree {
    root: Folder,
    links: Links,
    layer: usize,
    /// What this layer has removed from those below: once is enough.
    removed: BTreeSet<(Vec<Name>, Removed)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Removed {
    Itself,
    Content,
}

impl Folder {
    /// Everything in it, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Node)> {
        self.0.iter().map(|(name, entry)| (name, &entry.node))
    }

    fn files(&self) -> usize {
        self.iter()
            .map(|(_, node)| match node {
                Node::Folder(folder) => folder.files(),
                Node::File(_) => 1,
                Node::Link(_) => 0,
            })
            .sum()
    }

    /// Removes everything that is not of `layer`, and of folders what is not.
    fn keep_only(&mut self, layer: usize) {
        self.0.retain(|_, entry| {
            if let Node::Folder(folder) = &mut entry.node {
                folder.keep_only(layer);
                return entry.layer == layer || !folder.0.is_empty();
            }
            entry.layer == layer
        });
    }
}

impl Tree {
    /// An empty tree.
    pub fn new(links: Links) -> Self {
        Self {
            root: Folder::default(),
            links,
            layer: 0,
            removed: BTreeSet::new(),
        }
    }

    /// What comes now replaces what is there.
    pub fn next_layer(&mut self) {
        self.layer += 1;
        self.removed.clear();
    }

    /// The top level.
    pub fn root(&self) -> &Folder {
        &self.root
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        self.root.files()
    }

    /// The file at a path, which goes through folders only.
    pub fn file_at(&self, path: &[&[u8]]) -> Option<Content> {
        let path: Vec<Name> = path.iter().map(|name| name.to_vec()).collect();
        match self.node(&path)? {
            Node::File(content) => Some(*content),
            _ => None,
        }
    }

    /// Puts a folder, and those above it. One that is there stays.
    pub fn add_folder(&mut self, path: &[Name]) -> Result<(), UnpackError> {
        let layer = self.layer;
        let Some(place) = self.place(path)? else {
            return Ok(());
        };
        match place.folder.0.get_mut(&place.name) {
            Some(Entry {
                node: Node::Folder(_),
                layer: of,
            }) => {
                *of = layer;
                Ok(())
            }
            _ => self.put(path, Node::Folder(Folder::default())),
        }
    }

    /// Puts a file.
    pub fn add_file(&mut self, path: &[Name], content: Content) -> Result<(), UnpackError> {
        self.put(path, Node::File(content))
    }

    /// Puts a symbolic link.
    pub fn add_link(&mut self, path: &[Name], target: &[u8]) -> Result<(), UnpackError> {
        check_target(path, target)?;
        self.put(path, Node::Link(target.to_vec()))
    }

    /// Puts a second name for a file that is there.
    pub fn add_hard_link(&mut self, path: &[Name], target: &[Name]) -> Result<(), UnpackError> {
        let real = match target.split_last() {
            Some((name, parents)) => {
                let mut real = self.real(parents, target)?;
                real.push(name.clone());
                real
            }
            None => Vec::new(),
        };
        let Some(Node::File(content)) = self.node(&real) else {
            return Err(UnpackError::HardLink {
                path: words(path),
                target: words(target),
            });
        };
        let content = *content;
        self.put(path, Node::File(content))
    }

    /// Removes what lower layers have at a path; nothing when there is nothing.
    pub fn remove(&mut self, path: &[Name]) -> Result<(), UnpackError> {
        let layer = self.layer;
        let Some((name, parents)) = path.split_last() else {
            return Ok(());
        };
        let mut real = self.real(parents, path)?;
        real.push(name.clone());
        self.remove_once(path, &real, Removed::Itself)?;
        real.pop();
        let Some(folder) = self.folder_at(&real) else {
            return Ok(());
        };
        if let Some(entry) = folder.0.get_mut(name) {
            if let Node::Folder(inner) = &mut entry.node {
                inner.keep_only(layer);
                if !inner.0.is_empty() {
                    return Ok(());
                }
            }
            if entry.layer != layer {
                folder.0.remove(name);
            }
        }
        Ok(())
    }

    /// Removes what lower layers have in a folder.
    pub fn clear(&mut self, path: &[Name]) -> Result<(), UnpackError> {
        let layer = self.layer;
        let real = self.real(path, path)?;
        self.remove_once(path, &real, Removed::Content)?;
        if let Some(folder) = self.folder_at(&real) {
            folder.keep_only(layer);
        }
        Ok(())
    }

    fn remove_once(
        &mut self,
        path: &[Name],
        real: &[Name],
        what: Removed,
    ) -> Result<(), UnpackError> {
        if self.removed.insert((real.to_vec(), what)) {
            return Ok(());
        }
        Err(UnpackError::Twice { path: words(path) })
    }

    fn put(&mut self, path: &[Name], node: Node) -> Result<(), UnpackError> {
        let layer = self.layer;
        let twice = || UnpackError::Twice { path: words(path) };
        let Some(place) = self.place(path)? else {
            return Err(twice());
        };
        if let Some(entry) = place.folder.0.get(&place.name)
            && entry.layer == layer
        {
            return Err(twice());
        }
        place.folder.0.insert(place.name, Entry { node, layer });
        Ok(())
    }

    /// The folder in which a path's last name stands, made if need be; nothing for the top
    /// level itself.
    fn place(&mut self, path: &[Name]) -> Result<Option<Place<'_>>, UnpackError> {
        let Some((name, parents)) = path.split_last() else {
            return Ok(None);
        };
        let real = self.real(parents, path)?;
        let layer = self.layer;
        let mut folder = &mut self.root;
        for parent in real {
            let entry = folder.0.entry(parent).or_insert_with(|| Entry {
                node: Node::Folder(Folder::default()),
                layer,
            });
            match &mut entry.node {
                Node::Folder(inner) => folder = inner,
                _ => return Err(fault(path, PathFault::ThroughFile)),
            }
        }
        let name = name.clone();
        Ok(Some(Place { folder, name }))
    }

    /// The folder at a path without links, if there is one.
    fn folder_at(&mut self, real: &[Name]) -> Option<&mut Folder> {
        let mut folder = &mut self.root;
        for name in real {
            match folder.0.get_mut(name).map(|entry| &mut entry.node) {
                Some(Node::Folder(inner)) => folder = inner,
                _ => return None,
            }
        }
        Some(folder)
    }

    /// The path of folders that `parents` means, without links on the way.
    fn real(&self, parents: &[Name], path: &[Name]) -> Result<Vec<Name>, UnpackError> {
        let mut todo: VecDeque<Name> = parents.iter().cloned().collect();
        // The names so far, and the folder that each leads to, if it is there.
        let mut done: Vec<(Name, Option<&Folder>)> = Vec::new();
        let (mut followed, mut steps) = (0, 0);
        while let Some(name) = todo.pop_front() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(fault(path, PathFault::Circle));
            }
            match name.as_slice() {
                b"" | b"." => continue,
                // The root is its own parent, as everywhere.
                b".." => {
                    done.pop();
                    continue;
                }
                _ => {}
            }
            let folder = done.last().map_or(Some(&self.root), |(_, folder)| *folder);
            let target = match folder.and_then(|folder| folder.0.get(&name)) {
                Some(Entry {
                    node: Node::Link(target),
                    ..
                }) => target,
                Some(Entry {
                    node: Node::Folder(inner),
                    ..
                }) => {
                    done.push((name, Some(inner)));
                    continue;
                }
                _ => {
                    done.push((name, None));
                    continue;
                }
            };
            if self.links == Links::Refused {
                return Err(fault(path, PathFault::ThroughLink));
            }
            followed += 1;
            if followed > MAX_LINKS {
                return Err(fault(path, PathFault::Circle));
            }
            if target.first() == Some(&b'/') {
                done.clear();
            }
            for name in target.split(|byte| *byte == b'/').rev() {
                todo.push_front(name.to_vec());
            }
        }
        let len: usize = done.iter().map(|(name, _)| name.len() + 1).sum();
        if done.len() >= MAX_DEPTH || len > MAX_PATH {
            return Err(fault(path, PathFault::TooDeep));
        }
        Ok(done.into_iter().map(|(name, _)| name).collect())
    }

    fn node(&self, path: &[Name]) -> Option<&Node> {
        let (name, parents) = path.split_last()?;
        let mut folder = &self.root;
        for parent in parents {
            match folder.0.get(parent).map(|entry| &entry.node) {
                Some(Node::Folder(inner)) => folder = inner,
                _ => return None,
            }
        }
        folder.0.get(name).map(|entry| &entry.node)
    }
}

struct Place<'a> {
    folder: &'a mut Folder,
    name: Name,
}

fn fault(path: &[Name], fault: PathFault) -> UnpackError {
    let path = words(path);
    UnpackError::Path { path, fault }
}

fn words(path: &[Name]) -> String {
    readable(&path.join(&b'/'))
}
