//! Load on one path in all worlds, and the rows that compare what came of it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use leme_measure::{Burst, Figure, Kind, Measurement, turns};

use super::objects::Position;
use super::world::{Path, System, World};

/// How often, and how long a burst is.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) rounds: usize,
    pub(crate) length: Duration,
}

/// What is asked in a world.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// The backend's own address.
    Backend,
    Service(Position),
}

/// One subject and its bursts.
struct Cell {
    world: usize,
    system: System,
    services: u32,
    asked: Asked,
    bursts: Vec<Burst>,
}

pub(crate) fn measure(worlds: &mut [World], path: Path, pace: Pace) -> Result<()> {
    for kind in Kind::ALL {
        eprintln!("  {}: {}", path.name(), kind.name());
        let mut cells = cells(worlds, path, kind);
        for cell in &cells {
            cell.await_answer(worlds, path)?;
        }
        let bursts = turns::take(cells.len(), pace.rounds, |at| cells[at].burst(worlds, path, kind, pace.length))?;
        cells.iter_mut().zip(bursts).for_each(|(cell, bursts)| cell.bursts = bursts);
        kind.figures().iter().try_for_each(|figure| compare(&cells, path, figure))?;
        for node in worlds.iter_mut().flat_map(|world| &mut world.nodes) {
            node.leme.as_mut().map_or(Ok(()), |leme| leme.collect())?;
        }
    }
    Ok(())
}

fn cells(worlds: &[World], path: Path, kind: Kind) -> Vec<Cell> {
    let largest = worlds.iter().map(|world| world.services).max().unwrap_or(0);
    let mut cells = Vec::new();
    for (index, world) in worlds.iter().enumerate() {
        let asked: &[Asked] = match (world.system, world.services) {
            // Outside, nothing leads to a pod but routing.
            (System::Leme | System::Bridged, 0) if path.is_outside() => &[],
            (_, 0) => &[Asked::Backend],
            // Where in the list the Service stands matters to the first packet, if at all, and most in a long list.
            (_, services) if services == largest && services > 1 && path == Path::SameNode && is_first_packet(kind) => {
                &Position::ALL.map(Asked::Service)
            }
            _ => &[Asked::Service(Position::Middle)],
        };
        cells.extend(asked.iter().map(|asked| Cell {
            world: index,
            system: world.system,
            services: world.services,
            asked: *asked,
            bursts: Vec::new(),
        }));
    }
    cells
}

fn is_first_packet(kind: Kind) -> bool {
    matches!(kind, Kind::Connections | Kind::FirstPackets)
}

fn compare(cells: &[Cell], path: Path, figure: &Figure) -> Result<()> {
    let find = |system, services, asked| {
        cells.iter().find(|cell| cell.system == system && cell.services == services && cell.asked == asked)
    };
    let row = |cell: &Cell, name: String| {
        Measurement::new(format!("{}: {}", path.name(), figure.metric), name, figure.unit, figure.samples(&cell.bursts))
    };
    let direct = find(System::Leme, 0, Asked::Backend);
    let routed = find(System::Routed, 0, Asked::Backend).context("there is no world without rules")?;
    for cell in cells {
        let Asked::Service(position) = cell.asked else { continue };
        let (base, name) = match (cell.system, direct) {
            (System::Leme, Some(direct)) => (direct, "pod's own address, no Service"),
            _ => (routed, "pod's own address, no rules"),
        };
        let row = |name| row(cell, name).with_services(cell.services);
        row(format!("{}{}", cell.system.name(), standing(position)))
            .against(name, figure.samples(&base.bursts))
            .print()?;
        if cell.system == System::Leme {
            for other in [System::Nftables, System::Iptables] {
                let Some(other) = find(other, cell.services, cell.asked) else { continue };
                let name = format!("{}{}", other.system.name(), standing(position));
                row(format!("leme{}", standing(position))).against(name, figure.samples(&other.bursts)).print()?;
            }
        }
    }
    if let (Some(direct), Some(bridged)) = (direct, find(System::Bridged, 0, Asked::Backend)) {
        for base in [bridged, routed] {
            let row = row(direct, "leme, pod's own address".into());
            row.against(base.system.name(), figure.samples(&base.bursts)).print()?;
        }
    }
    Ok(())
}

/// The middle one is what stands for all.
fn standing(position: Position) -> &'static str {
    match position {
        Position::First => ", first Service",
        Position::Middle => "",
        Position::Last => ", last Service",
    }
}

impl Cell {
    fn target(&self, path: Path) -> SocketAddr {
        match self.asked {
            Asked::Backend => path.backend(),
            Asked::Service(position) => path.service(self.services, position),
        }
    }

    fn await_answer(&self, worlds: &mut [World], path: Path) -> Result<()> {
        let outcome = worlds[self.world].client(path).wait_for(self.target(path));
        outcome.with_context(|| self.title(path))
    }

    fn burst(&self, worlds: &mut [World], path: Path, kind: Kind, length: Duration) -> Result<Burst> {
        let outcome = worlds[self.world].client(path).burst(kind, self.target(path), length);
        outcome.with_context(|| self.title(path))
    }

    fn title(&self, path: Path) -> String {
        format!("{} with {} Services, {}", self.system.name(), self.services, path.name())
    }
}
