// The app: the model of the bundle, or the first in the app's documents, and one conversation that outlives the process.
import Dollop
import SwiftUI
import os

@main
struct DollopChatApp: App {
    @State private var model = ChatModel()
    @State private var saver: BackgroundSaver?

    var body: some Scene {
        WindowGroup {
            ChatView(model: model)
                .task { await open() }
        }
    }

    private func open() async {
        let documents = URL.documentsDirectory
        let own = try? FileManager.default.contentsOfDirectory(at: documents, includingPropertiesForKeys: nil)
            .first { $0.pathExtension == "gguf" }
        guard let file = own ?? Bundle.main.url(forResource: "smollm2-moe", withExtension: "gguf") else { return }
        let saved = documents.appending(path: "conversation.dollop")
        // Two thirds of what the system grants; the rest is the app's.
        await model.open(file, memory: UInt64(os_proc_available_memory()) / 3 * 2, saved: saved)
        if let chat = model.chat { saver = BackgroundSaver(chat, to: saved) }
    }
}
