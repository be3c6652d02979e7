//! Execution in the caller's memory.

use crate::error::Error;
use crate::format::ALIGN;
use crate::format::op::{Head, Op};
use crate::format::tensor::Port;
use crate::kernels::Set;
use crate::model::{Model, Ops};
use crate::ops;
use crate::uses;
#[cfg(pith_desktop)]
use crate::{
    isa::Isa,
    workspace::{self, Parallel, Workspace},
};

/// A model and the arena that it runs in.
///
/// Inputs and outputs lie in the arena and share it with everything between: write every input before each run, read outputs
/// before the next.
///
/// `USES` is what its operators are taken from, see [`crate::uses`].
#[derive(Debug)]
pub struct Engine<'m, 'a, const USES: u64 = { uses::ALL }> {
    model: Model<'m>,
    arena: &'a mut [i8],
    #[cfg(pith_desktop)]
    workspace: Option<Workspace<'a>>,
}

impl<'m, 'a> Engine<'m, 'a> {
    /// An engine for any model; the arena needs [`Model::arena_bytes`] bytes and must start at a multiple of [`ALIGN`] (see [`Aligned`]). Its content does
    /// not matter.
    pub fn new(model: &Model<'m>, arena: &'a mut [u8]) -> Result<Engine<'m, 'a>, Error> {
        Engine::using(model, arena)
    }

    /// Bytes of the workspace that the kernels of an instruction set want beside the arena; 0 if this machine has none of them.
    #[cfg(pith_desktop)]
    pub fn workspace_bytes(model: &Model<'m>, isa: Isa) -> usize {
        workspace::bytes(model, isa)
    }

    /// An engine that runs on vectors: weights are packed for `isa` (see [`Isa::detect`]) into the workspace, which needs
    /// [`Engine::workspace_bytes`] at any alignment; what an engine of the same model left there is not packed again. Outputs are the same bytes
    /// as without. Coded weights need not be decoded before.
    #[cfg(pith_desktop)]
    pub fn with_workspace(
        model: &Model<'m>,
        arena: &'a mut [u8],
        isa: Isa,
        workspace: &'a mut [u8],
    ) -> Result<Engine<'m, 'a>, Error> {
        let arena = checked_arena(model, arena)?;
        let workspace = Workspace::new(model, isa, workspace)?;
        Ok(Engine { model: *model, arena, workspace: Some(workspace) })
    }
}

impl<'m, 'a, const USES: u64> Engine<'m, 'a, USES> {
    /// As [`Engine::new`], for models that [`Model::parse_using`] accepts; an operator that it would not does nothing.
    pub fn using(model: &Model<'m>, arena: &'a mut [u8]) -> Result<Engine<'m, 'a, USES>, Error> {
        if uses::decodes_once(USES) && !model.is_decoded() {
            return Err(Error::NotDecoded);
        }
        Ok(Engine {
            model: *model,
            arena: checked_arena(model, arena)?,
            #[cfg(pith_desktop)]
            workspace: None,
        })
    }

    /// Lets large operators of an engine with a workspace run in parts at the same time. Outputs stay the same bytes.
    #[cfg(pith_desktop)]
    pub fn in_parallel(mut self, parallel: &'a dyn Parallel) -> Engine<'m, 'a, USES> {
        if let Some(workspace) = &mut self.workspace {
            workspace.parallel = Some(parallel);
        }
        self
    }

    /// The model.
    pub fn model(&self) -> &Model<'m> {
        &self.model
    }

    /// Memory of input `index`, `q = raw / scale + zero_point` of its [`Port`]; empty if there is none.
    pub fn input(&mut self, index: usize) -> &mut [i8] {
        match self.model.inputs().get(index) {
            Some(port) => {
                let range = range(&self.model, port);
                self.arena.get_mut(range).unwrap_or(&mut [])
            }
            None => &mut [],
        }
    }

    /// Quantizes raw values into input `index`, see [`Port::quantize`]; what is missing stays as it was.
    pub fn write_input(&mut self, index: usize, raw: &[f32]) {
        let Some(port) = self.model.inputs().get(index) else { return };
        #[cfg(pith_desktop)]
        if let Some(table) = self.workspace.as_ref().map(|workspace| workspace.table()) {
            return (table.quantize)(port, raw, self.input(index));
        }
        self.input(index).iter_mut().zip(raw).for_each(|(q, &raw)| *q = port.quantize(raw));
    }

    /// Raw values of output `index` after a run, as many as fit.
    pub fn read_output(&self, index: usize, raw: &mut [f32]) {
        let Some(port) = self.model.outputs().get(index) else { return };
        raw.iter_mut().zip(self.output(index)).for_each(|(raw, &q)| *raw = port.dequantize(q));
    }

    /// Output `index` after a run; empty if there is none.
    pub fn output(&self, index: usize) -> &[i8] {
        self.model.outputs().get(index).and_then(|port| self.arena.get(range(&self.model, port))).unwrap_or(&[])
    }

    /// Memory of a tensor, which holds its value only between the operator that writes it and the last that reads it.
    pub fn tensor(&self, id: u16) -> &[i8] {
        self.arena.get(range(&self.model, &Port { tensor: id, ..Port::default() })).unwrap_or(&[])
    }

    /// Runs the model: inputs to outputs.
    pub fn run(&mut self) {
        let mut steps = self.steps();
        while steps.step().is_some() {}
    }

    /// A run, one operator at a time.
    pub fn steps(&mut self) -> Steps<'_, 'm, 'a, USES> {
        Steps {
            ops: self.model.ops_using(),
            model: &self.model,
            arena: self.arena,
            #[cfg(pith_desktop)]
            workspace: self.workspace.as_mut(),
            #[cfg(pith_desktop)]
            index: 0,
            #[cfg(not(pith_desktop))]
            owner: core::marker::PhantomData,
        }
    }
}

/// Exactly what the plan needs, at its alignment.
fn checked_arena<'a>(model: &Model<'_>, arena: &'a mut [u8]) -> Result<&'a mut [i8], Error> {
    if arena.as_ptr().align_offset(ALIGN) != 0 {
        return Err(Error::ArenaMisaligned);
    }
    let (needed, given) = (model.arena_bytes(), arena.len());
    let arena = arena.get_mut(..needed).ok_or(Error::ArenaTooSmall { needed, given })?;
    Ok(bytemuck::cast_slice_mut(arena))
}

fn range(model: &Model<'_>, port: &Port) -> core::ops::Range<usize> {
    let tensor = model.tensor(port.tensor);
    tensor.offset as usize..tensor.offset as usize + tensor.len as usize
}

/// A run in progress, for profiling and for looking at tensors in between.
#[derive(Debug)]
pub struct Steps<'e, 'm, 'a, const USES: u64 = { uses::ALL }> {
    ops: Ops<'m, USES>,
    model: &'e Model<'m>,
    arena: &'e mut [i8],
    #[cfg(pith_desktop)]
    workspace: Option<&'e mut Workspace<'a>>,
    #[cfg(pith_desktop)]
    index: usize,
    #[cfg(not(pith_desktop))]
    owner: core::marker::PhantomData<&'a ()>,
}

impl<'m, const USES: u64> Steps<'_, 'm, '_, USES> {
    /// Executes the next operator and returns it; none after the last.
    pub fn step(&mut self) -> Option<(Head, Op<'m>)> {
        let (head, op) = self.ops.next()?;
        let done = self.execute(&head, &op);
        debug_assert!(done.is_some(), "a checked operator has its memory");
        Some((head, op))
    }

    #[cfg(not(pith_desktop))]
    #[inline(always)]
    fn execute(&mut self, head: &Head, op: &Op<'m>) -> Option<()> {
        ops::run::<USES>(self.model, Set::default(), head, op, self.arena)
    }

    /// What has packed weights runs on them.
    #[cfg(pith_desktop)]
    fn execute(&mut self, head: &Head, op: &Op<'m>) -> Option<()> {
        let index = self.index;
        self.index += 1;
        let Some(workspace) = &mut self.workspace else {
            return ops::run::<USES>(self.model, Set::default(), head, op, self.arena);
        };
        if workspace.run(self.model, index, op, self.arena) {
            return Some(());
        }
        let set = Set { table: Some(workspace.table()) };
        ops::run::<USES>(&workspace.decoded(self.model), set, head, op, self.arena)
    }

    /// Memory of a tensor, see [`Engine::tensor`].
    pub fn tensor(&self, id: u16) -> &[i8] {
        self.arena.get(range(self.model, &Port { tensor: id, ..Port::default() })).unwrap_or(&[])
    }
}

/// Bytes at a multiple of 16, for arenas and models: `static mut`-free with a cell of your choice, or on the stack.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub struct Aligned<T: ?Sized>(pub T);
