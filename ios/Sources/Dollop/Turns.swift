// The queue of calls on a chat: one runs at a time.
import Foundation

/// The queue of calls on a chat or session. A call waits for calls that end by themselves. It does not wait for a generation, but
/// fails: the waiting task may be the consumer that the generation waits for.
final class Turns: @unchecked Sendable {
    // Unchecked: the condition's lock guards the queue.
    private let condition = NSCondition()
    private var queue: [Turn] = []

    /// A call in the queue.
    final class Turn: Sendable {
        /// The events of the call if it generates, else nil.
        let channel: Channel?

        init(_ channel: Channel?) { self.channel = channel }
    }

    /// Appends a call to the queue. Does not block.
    ///
    /// - Throws: ``DollopError/Status/busy`` if a generation is in the queue.
    func join(_ channel: Channel? = nil) throws -> Turn {
        condition.lock()
        defer { condition.unlock() }
        if queue.contains(where: { $0.channel?.isOpen == true }) {
            throw DollopError(status: .busy, message: "an answer of this chat is being generated")
        }
        let turn = Turn(channel)
        queue.append(turn)
        return turn
    }

    /// Blocks until all calls before `turn` are done. Only for threads that may block.
    func wait(for turn: Turn) {
        condition.lock()
        defer { condition.unlock() }
        while queue.first !== turn { condition.wait() }
    }

    /// Removes a call from the queue, and wakes the next one.
    func leave(_ turn: Turn) {
        condition.lock()
        defer { condition.unlock() }
        queue.removeAll { $0 === turn }
        condition.broadcast()
    }

    /// Stops all generations in the queue. `cancel` cancels the native call that runs.
    func stop(_ cancel: () -> Void) {
        condition.lock()
        defer { condition.unlock() }
        queue.forEach { $0.channel?.stop() }
        cancel()
    }

    /// Stops the generation of `turn`, if it has not ended, and drops its events. The lock is held, so that `cancel` cannot hit the
    /// native call of the next turn.
    func abandon(_ turn: Turn, _ cancel: () -> Void) {
        condition.lock()
        defer { condition.unlock() }
        turn.channel?.abandon()
        if queue.first === turn { cancel() }
    }
}
